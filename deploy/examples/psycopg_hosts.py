"""psycopg 3 with several hosts: psycopg_hosts.py a,b,c PORT USER DATABASE

Keeps one connection to the primary and writes through it; when it breaks, connects anew. Ends once the primary is another
server than at first, and prints both.
"""

import sys
import time

import psycopg


def connect(hosts, **options):
    """Tries the hosts one after the other.

    psycopg 3.1.13 and later do so themselves with host="a,b,c"; before, the first one that answers nothing uses up
    connect_timeout.
    """
    for host in hosts:
        try:
            # Without limits, a connection to a machine that lost its power hangs for minutes.
            return psycopg.connect(
                host=host,
                target_session_attrs="read-write",
                connect_timeout=2,
                tcp_user_timeout=3000,
                keepalives_idle=2,
                keepalives_interval=1,
                autocommit=True,
                **options,
            )
        except psycopg.OperationalError:
            continue
    raise psycopg.OperationalError("no primary among the hosts")


def main(hosts, port, user, database):
    first = None
    while True:
        try:
            with connect(hosts.split(","), port=port, user=user, dbname=database) as connection:
                while True:
                    row = connection.execute(
                        "INSERT INTO example VALUES ('psycopg') RETURNING host(inet_server_addr())"
                    ).fetchone()
                    if row[0] != first:
                        print(row[0], flush=True)
                        if first:
                            return
                        first = row[0]
                    time.sleep(0.2)
        except psycopg.OperationalError:
            # Whether the last row was written is not known: an application that cares asks for it.
            time.sleep(0.2)


main(*sys.argv[1:5])
