# Ends every process that works under the folder $1, then removes it, once standard input closes:
# when its owner drops it or dies. $2 is the owner's pid, spared.
read -r _ignored
signal=QUIT
round=0
while [ "$round" -lt 400 ]; do
    pids=$(find /proc -maxdepth 2 -name cwd \( -lname "$1" -o -lname "$1/*" \) 2>/dev/null | cut -d/ -f3 | grep -vx "$2")
    [ -z "$pids" ] && break
    kill -CONT $pids 2>/dev/null
    kill -"$signal" $pids 2>/dev/null
    round=$((round + 1))
    [ "$round" -eq 100 ] && signal=KILL
    sleep 0.03
done
rm -rf -- "$1"
