"""A Python program with threads and children that checks itself.

Serves lines over TCP: "N" is answered "N COUNT ok" (COUNT: requests of this
connection), or "N COUNT bad: REASON" when any part of it is wrong. With a
WITNESS file it also appends step after step to it: a step that is missing there
was lost, and one that is there twice was run twice. It keeps the file OPEN open and
MAPPED mapped, which have the same content. A line "do DEED" makes it fork, exec,
exit, grow, shrink, check what it grew by, or end the last child, and is answered
when that is done.
Usage: counter.py ADDRESS PORT [WITNESS [OPEN MAPPED]]
"""
import hashlib
import mmap
import os
import signal
import socket
import sys
import threading
import time

wrong = []
ballast, forked, ended, kept = [], [], set(), []


def worker(number):
    """Keeps a chain of hashes beside the list it was made from."""
    history, chain = [], hashlib.sha256()
    step = 0
    while True:
        step += 1
        item = f"{number}:{step}".encode()
        history.append(item)
        chain.update(item)
        if step % 200 == 0:
            again = hashlib.sha256()
            for past in history:
                again.update(past)
            if again.digest() != chain.digest():
                wrong.append(f"thread {number} at step {step}")
        if len(history) >= 5000:
            history, chain = [], hashlib.sha256()
        time.sleep(0.001)


def child(link):
    """Counts what the parent sends and says the count."""
    count = 0
    while True:
        data = link.recv(8)
        if not data:
            os._exit(0)
        count += 1
        if int.from_bytes(data, "big") != count:
            os._exit(1)
        link.sendall(count.to_bytes(8, "big"))


def talk(link, number):
    count = 0
    while True:
        count += 1
        try:
            link.sendall(count.to_bytes(8, "big"))
            answer = link.recv(8)
        except OSError:
            answer = b""
        if number in ended:
            return
        if int.from_bytes(answer, "big") != count:
            wrong.append(f"child {number} answered {answer!r} to {count}")
            return
        time.sleep(0.002)


def witness(path):
    """Writes each number once."""
    step = 0
    with open(path, "ab", buffering=0) as file:
        while True:
            step += 1
            file.write(f"{step}\n".encode())
            time.sleep(0.002)


# A child after an exec: another program that counts on.
AGAIN = """
import socket, sys
sys.dont_write_bytecode = True
sys.path[:0] = [sys.argv[1]]
import counter
counter.child(socket.socket(fileno=0))
"""


def do(deed):
    """Changes what there is to be moved."""
    name, _, amount = deed.partition(" ")
    if name == "grow":
        grown = os.urandom(int(amount) << 20)
        ballast.append((grown, hashlib.sha256(grown).digest()))
    elif name == "shrink":
        ballast.clear()
    elif name == "check":
        for grown, digest in ballast:
            if hashlib.sha256(grown).digest() != digest:
                wrong.append(f"{len(grown)} bytes of ballast")
    elif name == "exit":
        os._exit(0)
    elif name in ("fork", "exec"):
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            # Memory of its own, touched before it says that it is there.
            ballast.append((os.urandom(4 << 20), b""))
            if name == "exec":
                theirs.set_inheritable(True)
                os.dup2(theirs.fileno(), 0)
                os.execv(sys.executable, [sys.executable, "-c", AGAIN, os.path.dirname(os.path.abspath(__file__))])
            child(theirs)
        theirs.close()
        threading.Thread(target=talk, args=(ours, pid), daemon=True).start()
        forked.append(pid)
    elif name == "end":
        pid = forked.pop()
        ended.add(pid)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def serve(connection):
    count = 0
    with connection, connection.makefile("rw", newline="\n") as lines:
        for line in lines:
            if line.startswith("do "):
                do(line[3:].strip())
                lines.write("done\n" if not wrong else f"bad: {wrong}\n")
                lines.flush()
                continue
            count += 1
            if kept and kept[1][:] != os.pread(kept[0], len(kept[1]), 0):
                wrong.append("the files differ")
            state = "ok" if not wrong else "bad: " + "; ".join(wrong)
            lines.write(f"{line.strip()} {count} {state}\n")
            lines.flush()


def main():
    links = []
    for _ in range(2):
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            ours.close()
            for link in links:
                link.close()
            child(theirs)
        theirs.close()
        links.append(ours)
    for number, link in enumerate(links):
        threading.Thread(target=talk, args=(link, number), daemon=True).start()
    for number in range(3):
        threading.Thread(target=worker, args=(number,), daemon=True).start()
    if len(sys.argv) > 3:
        threading.Thread(target=witness, args=(sys.argv[3],), daemon=True).start()
    if len(sys.argv) > 5:
        kept.append(os.open(sys.argv[4], os.O_RDONLY))
        with open(sys.argv[5], "rb") as file:
            kept.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    server = socket.create_server((sys.argv[1], int(sys.argv[2])))
    while True:
        connection, _ = server.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
