"""A lab server's greeter: says the server's name to whoever connects, and stays connected until the caller leaves.

    greeter.py NAME PORT
"""

import asyncio
import sys


async def main():
    name, port = sys.argv[1].encode(), int(sys.argv[2])

    async def greet(reader, writer):
        try:
            writer.write(name + b"\n")
            await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(greet, None, port, backlog=1024)
    await server.serve_forever()


asyncio.run(main())
