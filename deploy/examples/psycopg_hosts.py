"""psycopg 3 with several hosts: psycopg_hosts.py 'host=a,b,c target_session_attrs=read-write …'

Keeps one connection and writes through it; when it breaks, connects anew, and libpq finds the primary. Ends once the
primary is another server than at first, and prints both.
"""

import sys
import time

import psycopg

first = None
while True:
    try:
        # Without a limit, a connection to a machine that lost its power hangs for minutes.
        with psycopg.connect(sys.argv[1], autocommit=True, connect_timeout=2, tcp_user_timeout=3000) as connection:
            while True:
                row = connection.execute(
                    "INSERT INTO example VALUES ('psycopg') RETURNING host(inet_server_addr())"
                ).fetchone()
                if row[0] != first:
                    print(row[0], flush=True)
                    if first:
                        sys.exit(0)
                    first = row[0]
                time.sleep(0.2)
    except psycopg.OperationalError:
        # Whether the last row was written is not known: an application that cares asks for it.
        time.sleep(0.2)
