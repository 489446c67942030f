"""Passes frames between two interfaces, each some time later: latency where the kernel has no netem.

latency.py ONE OTHER DELAY_MS JITTER_MS: prints "ready", and ends with its standard input.
Frames keep their order, as on a wire. Headers of PACKET_VNET_HDR travel with them, so that checksums
that are still to be made and segments that are still to be cut stay so.
"""
import collections, os, random, select, socket, sys, time

SOL_PACKET, PACKET_VNET_HDR, OUTGOING, EVERY = 263, 15, 4, 3
LARGEST, MOST = 70_000, 20_000

one, other, delay, jitter = sys.argv[1], sys.argv[2], float(sys.argv[3]) / 1e3, float(sys.argv[4]) / 1e3


def tap(name):
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERY))
    made.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    made.bind((name, EVERY))
    made.setblocking(False)
    return made


taps = [tap(one), tap(other)]
waiting = [collections.deque(), collections.deque()]  # what came in at each: (when it leaves, frame)
print("ready", flush=True)
while True:
    now = time.monotonic()
    heads = [queue[0][0] for queue in waiting if queue]
    limit = max(0.0, min(heads) - now) if heads else None
    readable, _, _ = select.select([*taps, sys.stdin], [], [], limit)
    if sys.stdin in readable and not os.read(0, 1):
        break
    for side, queue in enumerate(waiting):
        for _ in range(64):
            try:
                frame, address = taps[side].recvfrom(LARGEST)
            except (BlockingIOError, OSError):
                break
            if address[2] != OUTGOING and len(queue) < MOST:
                leaves = time.monotonic() + delay + random.uniform(-jitter, jitter)
                queue.append((max(leaves, queue[-1][0] if queue else 0.0), frame))
        now = time.monotonic()
        while queue and queue[0][0] <= now:
            try:
                taps[1 - side].send(queue.popleft()[1])
            except OSError:
                pass  # lost, as on a wire
