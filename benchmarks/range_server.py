"""Serves a folder by HTTP ranges, and waits before every answer as an object store does.

    python benchmarks/range_server.py FOLDER --delay_ms=50

It prints its port, on the loopback address, and ends with its standard input. `/counts` tells how
many requests there were and how many bytes were asked for. It needs aiohttp, which s3fs brings.
"""

import argparse
import asyncio
import os
import re
import sys

from aiohttp import web

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


def application(folder: str, delay_secs: float) -> web.Application:
    counts = {"requests": 0, "bytes": 0}

    async def answer(request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name == "counts":
            return web.json_response(counts)
        counts["requests"] += 1
        await asyncio.sleep(delay_secs)
        if not name:
            links = (f'<a href="/{each}">{each}</a>' for each in sorted(os.listdir(folder)))
            return web.Response(text="\n".join(links), content_type="text/html")
        path = os.path.join(folder, os.path.basename(name))
        if not os.path.isfile(path):
            raise web.HTTPNotFound
        if request.method == "GET":
            span = _RANGE.fullmatch(request.headers.get("Range", ""))
            size = os.path.getsize(path)
            counts["bytes"] += int(span[2]) - int(span[1]) + 1 if span else size
        return web.FileResponse(path)

    result = web.Application()
    result.router.add_get("/{name:.*}", answer)
    return result


async def serve(folder: str, delay_secs: float) -> None:
    runner = web.AppRunner(application(folder, delay_secs))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--delay_ms", type=float, default=50.0)
    options = parser.parse_args()
    asyncio.run(serve(options.folder, options.delay_ms / 1000))
