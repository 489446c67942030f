#!/bin/sh
# psql with several hosts: psql.sh 'host=a,b,c port=5432,5432,5432 target_session_attrs=read-write …'
#
# Writes one row after another, each over a new connection; libpq finds the primary. Ends once the primary is another
# server than at first, and prints both.
# Without limits, a connection to a machine that lost its power hangs for minutes.
limits='keepalives_idle=2 keepalives_interval=1 tcp_user_timeout=3000'
first=
while :; do
    server=$(PGCONNECT_TIMEOUT=2 psql "$1 $limits" -XAtqc \
        "INSERT INTO example VALUES ('psql') RETURNING coalesce(host(inet_server_addr()), 'socket')" 2>/dev/null)
    if [ -n "$server" ]; then
        [ -n "$first" ] || { first=$server; echo "$server"; }
        [ "$server" = "$first" ] || { echo "$server"; exit 0; }
    fi
    sleep 0.2
done
