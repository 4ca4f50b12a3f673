"""Asks web servers for a page, each time over a new connection, and prints how often; whatever fails goes to stderr.

    requests.py RATE STOP VIP...

So many requests per second all in all, the addresses in turn, until the file STOP is there.
"""

import asyncio
import os
import sys
import time

REQUEST = b"GET / HTTP/1.0\r\n\r\n"


async def ask(vip):
    reader, writer = await asyncio.wait_for(asyncio.open_connection(vip, 80), 10)
    writer.write(REQUEST)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    if not answer.startswith(b"HTTP/1.1 200"):
        raise ValueError(answer[:80])


async def main(rate, stop, vips):
    asked, begun = [], time.monotonic()
    while not os.path.exists(stop):
        await asyncio.sleep(0.01)
        # What a busy machine held up is made good, but never more than a tenth of a second's requests at once.
        due = min(int((time.monotonic() - begun) * rate) - len(asked), rate // 10)
        asked += [asyncio.create_task(ask(vips[(len(asked) + n) % len(vips)])) for n in range(due)]
    failed = [error for error in await asyncio.gather(*asked, return_exceptions=True) if error]
    for error in failed:
        print(repr(error), file=sys.stderr)
    print(len(asked), len(failed))


asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
