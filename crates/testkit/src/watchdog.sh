# Ends every process that works under the folder $1, then removes it, once standard input closes:
# when its owner drops it or dies. $2 is the owner's pid, spared. What is mounted there is thawed first, so that whoever
# waits for it can end, and taken away.
read -r _ignored
mounts=$(while read -r _ place _; do case $place in "$1"/*) echo "$place" ;; esac; done </proc/mounts)
for place in $mounts; do fsfreeze --unfreeze "$place" 2>/dev/null; done
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
for place in $mounts; do umount "$place" || umount --lazy "$place"; done
# a thread of its owner may put something there meanwhile
round=0
until rm -rf -- "$1" || [ "$round" -ge 10 ]; do
    round=$((round + 1))
    sleep 0.3
done
