-- One publication: null if there is none. Locks: none. Privileges: none. Oldest version: 14.
SELECT puballtables,
       pubinsert AND pubupdate AND pubdelete AND pubtruncate AS whole,
       pubviaroot
  FROM pg_catalog.pg_publication
 WHERE pubname = $1
