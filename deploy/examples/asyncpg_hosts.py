"""asyncpg with several hosts: asyncpg_hosts.py a,b,c PORT USER DATABASE

Keeps one connection to the primary. Ends once the primary is another server than at first, and prints
both.
"""

import asyncio
import sys

import asyncpg

FAILURES = (OSError, TimeoutError, asyncio.TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)


async def connect(dsn):
    """Tries the hosts one after the other; asyncpg 0.28 and later do so themselves (target_session_attrs)."""
    hosts, port, options = dsn
    for host in hosts:
        try:
            connection = await asyncpg.connect(host=host, port=port, timeout=2, command_timeout=3, **options)
            if not await connection.fetchval("SELECT pg_is_in_recovery()"):
                return connection
            await connection.close()
        except FAILURES:
            continue
    raise TimeoutError("no primary among the hosts")


async def main(hosts, port, user, database):
    first = None
    while True:
        try:
            connection = await connect((hosts.split(","), int(port), {"user": user, "database": database}))
            while True:
                server = await connection.fetchval(
                    "INSERT INTO example VALUES ('asyncpg') RETURNING host(inet_server_addr())"
                )
                if server != first:
                    print(server, flush=True)
                    if first:
                        return
                    first = server
                await asyncio.sleep(0.2)
        except FAILURES:
            await asyncio.sleep(0.2)


asyncio.run(main(*sys.argv[1:5]))
