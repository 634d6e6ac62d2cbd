"""A program that does to files what programs do, and checks them.

Step after step, in DIR: a line in a log that is rotated, a word in a ledger, blocks in
a sparse file and in a mapped one, hard links, files that are cut and replaced,
directories that come and go, and writes to two open files that have lost their names:
one altogether, one while another name remains. What is not as it wrote it is said in
the file `bad`.
Usage: filer.py DIR
"""
import mmap
import os
import struct
import sys
import time

ROOT = sys.argv[1]
SPARSE = 1 << 30
WORD = struct.Struct("<Q")


def at(name):
    return os.path.join(ROOT, name)


def opened(name):
    return os.open(at(name), os.O_RDWR | os.O_CREAT)


def expect(what, is_so):
    if not is_so:
        with open(at("bad"), "a") as bad:
            bad.write(f"{step}: {what}\n")


log = os.open(at("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
ledger = opened("ledger")
sparse = opened("sparse")
os.ftruncate(sparse, SPARSE)
mapped_file = opened("mapped")
os.ftruncate(mapped_file, 1 << 20)
mapped = mmap.mmap(mapped_file, 1 << 20)
nameless = opened("nameless")
os.unlink(at("nameless"))
renamed = opened("first")
os.link(at("first"), at("second"))
os.unlink(at("first"))
os.setxattr(at("ledger"), "trusted.of", b"filer")
os.mkfifo(at("fifo"))
os.mknod(at("whiteout"), 0o020000, 0)
os.symlink("/etc/passwd", at("link"))
written, step = {}, 0
while True:
    step += 1
    word = WORD.pack(step)
    os.write(log, b"%d\n" % step)
    os.pwrite(ledger, word, 8 * step)
    place = step * 7919 * 4096 % SPARSE
    os.pwrite(sparse, word, place)
    written[place] = word
    if len(written) > 50:
        oldest = next(iter(written))
        expect("sparse", os.pread(sparse, 8, oldest) == written.pop(oldest))
    where = step * 4104 % (1 << 20) // 8 * 8
    mapped[where : where + 8] = word
    expect("mapped", os.pread(mapped_file, 8, where) == word)
    if step > 1:
        before = WORD.pack(step - 1)
        expect("nameless", os.pread(nameless, 8, 0) == before)
        expect("second", open(at("second"), "rb").read() == before)
        expect("ledger", os.pread(ledger, 8, 8 * (step - 1)) == before)
    os.pwrite(nameless, word, 0)
    os.pwrite(renamed, word, 0)
    if step % 50 == 0:
        os.rename(at("log"), at(f"log.{step // 50:06}"))
        os.close(log)
        log = os.open(at("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if step % 7 == 0:
        mark = at(f"mark.{step % 5}")
        if os.path.lexists(mark):
            os.unlink(mark)
        os.link(at("ledger"), mark)
        expect("mark", os.stat(mark).st_ino == os.fstat(ledger).st_ino)
    if step % 11 == 0:
        with open(at("short.new"), "wb") as short:
            short.write(b"x" * (step % 70000))
        os.rename(at("short.new"), at("short"))
        expect("short", os.path.getsize(at("short")) == step % 70000)
    if step % 13 == 0:
        os.makedirs(at(f"deep/{step % 3}/below"), exist_ok=True)
        gone = at(f"deep/{(step + 1) % 3}")
        if os.path.isdir(gone):
            os.rmdir(os.path.join(gone, "below"))
            os.rmdir(gone)
    expect("xattr", os.getxattr(at("ledger"), "trusted.of") == b"filer")
    expect("link", os.readlink(at("link")) == "/etc/passwd")
    time.sleep(0.001)
