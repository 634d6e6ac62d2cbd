// A process tree whose memory is known, byte for byte: it waits for a file named
// "go", does what its mode says, verifies everything and writes "result".
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
static char dir[512], mode[32];
static unsigned char *big, *file_map;
static size_t pages;
static volatile int thread_verdict = -1;

static unsigned char byte_of(size_t page, size_t at, unsigned salt) {
    return (unsigned char)(page * 31 + at * 7 + (page >> 8) + salt + 1);
}
// Every 5th page is never touched, every 7th is written with zeroes.
static int is_zero(size_t page) { return page % 5 == 4 || page % 7 == 6; }
static void fill(unsigned char *base, size_t from, size_t to, unsigned salt) {
    for (size_t p = from; p < to; p++) {
        if (p % 5 == 4) continue;
        for (size_t i = 0; i < PAGE; i++) base[p * PAGE + i] = is_zero(p) ? 0 : byte_of(p, i, salt);
    }
}
static void result(const char *text) {
    char path[600], temporary[600];
    snprintf(path, sizeof path, "%s/result-%d", dir, getpid());
    snprintf(temporary, sizeof temporary, "%s/.result-%d", dir, getpid());
    int fd = open(temporary, O_CREAT | O_WRONLY | O_TRUNC, 0600);
    if (write(fd, text, strlen(text)) < 0) _exit(9);
    close(fd);
    rename(temporary, path);
}
static void fail(const char *what, size_t page, size_t at, unsigned got) {
    char text[200];
    snprintf(text, sizeof text, "bad %s: page %zu byte %zu is %u errno %d", what, page, at, got, errno);
    result(text);
    _exit(1);
}
static void verify(const char *what, unsigned char *base, size_t from, size_t to, size_t shift, unsigned salt) {
    for (size_t p = from; p < to; p++)
        for (size_t i = 0; i < PAGE; i++) {
            unsigned char want = is_zero(p) ? 0 : byte_of(p, i, salt);
            unsigned char got = base[(p + shift) * PAGE + i];
            if (got != want) fail(what, p, i, got);
        }
}
static void verify_zero(const char *what, unsigned char *at, size_t count) {
    for (size_t i = 0; i < count * PAGE; i++)
        if (at[i]) fail(what, i / PAGE, i % PAGE, at[i]);
}
// For "churn": the pages in chunks, each wherever it was moved to, and what each page
// holds: the salt it was written with, or NOTHING once it was given up.
enum { CHUNK = 4, NOTHING = -1, STORM = 4096, STORMS = 3 };
static unsigned char **chunk_at;
static int *holds;
static unsigned char *storm_at[STORMS];
static unsigned char *page_at(size_t p) { return chunk_at[p / CHUNK] + p % CHUNK * PAGE; }
static void verify_page(const char *what, size_t p) {
    for (size_t i = 0; i < PAGE; i++) {
        int zero = holds[p] == NOTHING || (holds[p] == 0 && is_zero(p));
        unsigned char want = zero ? 0 : byte_of(p, i, (unsigned)holds[p]);
        if (page_at(p)[i] != want) fail(what, p, i, page_at(p)[i]);
    }
}
static void give_up(size_t from, size_t to) {
    for (size_t p = from; p < to; p++) holds[p] = NOTHING;
}
static void churn_once(unsigned step) {
    size_t p = (size_t)rand() % pages, chunk = p / CHUNK, first = chunk * CHUNK;
    size_t end = p + (size_t)rand() % (first + CHUNK - p) + 1;
    unsigned char *place;
    switch (rand() % 8) {
    case 0: case 1: case 2:
        verify_page("page", p);
        break;
    case 3: case 4:
        for (size_t i = 0; i < PAGE; i++) page_at(p)[i] = byte_of(p, i, step % 100 + 1);
        holds[p] = (int)(step % 100 + 1);
        break;
    case 5:
        madvise(page_at(p), (end - p) * PAGE, MADV_DONTNEED);
        give_up(p, end);
        verify_page("dropped", p);
        break;
    case 6:
        // A chunk of several mappings cannot be moved: some are moved, the others punched.
        if (chunk % 2) break;
        place = mmap(NULL, CHUNK * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (mremap(chunk_at[chunk], CHUNK * PAGE, CHUNK * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place) != place)
            fail("mremap", p, 0, 0);
        chunk_at[chunk] = place;
        verify_page("moved", p);
        break;
    case 7:
        if (chunk % 2 == 0 || rand() % 8) break;
        munmap(page_at(p), (end - p) * PAGE);
        if (mmap(page_at(p), (end - p) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                 0) == MAP_FAILED)
            fail("mmap", p, 0, 0);
        give_up(p, end);
        break;
    }
}
// For "storm": gives pages of its own up without a pause, and knows what is in each.
static void *storm(void *arg) {
    unsigned char *own = arg, held[STORM];
    unsigned seed = (unsigned)(size_t)arg, step = 0;
    char path[600];
    memset(held, 1, sizeof held);
    snprintf(path, sizeof path, "%s/stop", dir);
    while (++step % 1024 || access(path, F_OK)) {
        size_t p = (size_t)rand_r(&seed) % STORM;
        unsigned char *at = own + p * PAGE;
        for (size_t i = 0; i < PAGE; i += 511)
            if (at[i] != held[p]) fail("storm", p, i, at[i]);
        madvise(at, PAGE, MADV_DONTNEED);
        held[p] = 0;
        if (seed & 64) memset(at, held[p] = (unsigned char)(step | 1), PAGE);
    }
    return NULL;
}
// Changes its mappings in every way, forks, and knows what must be where, until told to stop.
static void churn(void) {
    char path[600];
    int kids = 0, status;
    pthread_t storms[STORMS];
    int is_storm = !strcmp(mode, "storm");
    for (size_t k = 0; is_storm && k < STORMS; k++) pthread_create(&storms[k], NULL, storm, storm_at[k]);
    snprintf(path, sizeof path, "%s/stop", dir);
    srand((unsigned)time(NULL));
    for (unsigned step = 0; access(path, F_OK); step++) {
        for (int k = 0; k < 8; k++) churn_once(step);
        nanosleep(&(struct timespec){0, 300000}, NULL);
        if (step % 128 == 0 && kids < 2) {
            if (fork() == 0) {
                for (int k = 0; k < 200; k++) churn_once(step);
                for (size_t p = 0; p < pages; p++) verify_page("in a child", p);
                _exit(0);
            }
            kids++;
        }
        while (kids > 0 && waitpid(-1, &status, WNOHANG) > 0) {
            if (status) fail("child", step, 0, (unsigned)status);
            kids--;
        }
    }
    while (kids-- > 0 && wait(&status) > 0)
        if (status) fail("child", 0, 0, (unsigned)status);
    for (size_t k = 0; is_storm && k < STORMS; k++) pthread_join(storms[k], NULL);
    for (size_t p = 0; p < pages; p++) verify_page("at the end", p);
    result("ok");
    _exit(0);
}
static void wait_go(void) {
    char path[600];
    snprintf(path, sizeof path, "%s/go", dir);
    while (access(path, F_OK)) nanosleep(&(struct timespec){0, 500000}, NULL);
}
static void *thread_main(void *arg) {
    (void)arg;
    unsigned char local[65536];
    for (size_t i = 0; i < sizeof local; i++) local[i] = (unsigned char)(i * 13 + 5);
    wait_go();
    int ok = 1;
    for (size_t i = 0; i < sizeof local; i++) ok &= local[i] == (unsigned char)(i * 13 + 5);
    thread_verdict = ok;
    return NULL;
}
static void verify_file(void) {
    for (size_t p = 0; p < 64; p++)
        for (size_t i = 0; i < PAGE; i++) {
            unsigned want = p % 4 == 1 ? 0xcc : p % 4 == 2 ? 0 : (p + 0x30);
            if (file_map[p * PAGE + i] != (unsigned char)want) fail("file", p, i, file_map[p * PAGE + i]);
        }
}
int main(int argc, char **argv) {
    if (argc != 4) return 2;
    snprintf(dir, sizeof dir, "%s", argv[1]);
    snprintf(mode, sizeof mode, "%s", argv[2]);
    pages = strtoul(argv[3], NULL, 10);
    setsid();
    char path[600];
    snprintf(path, sizeof path, "%s/mapped", dir);
    int fd = open(path, O_CREAT | O_RDWR, 0600);
    for (size_t p = 0; p < 64; p++) {
        unsigned char page[PAGE];
        memset(page, (int)(p + 0x30), PAGE);
        if (write(fd, page, PAGE) != (ssize_t)PAGE) return 3;
    }
    file_map = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    close(fd);
    for (size_t p = 0; p < 64; p++) {
        if (p % 4 == 1) memset(file_map + p * PAGE, 0xcc, PAGE);
        if (p % 4 == 2) memset(file_map + p * PAGE, 0, PAGE);
    }
    big = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill(big, 0, pages, 0);
    unsigned char *locked = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill(locked, 0, 16, 3);
    mlock(locked, 16 * PAGE);
    unsigned char *sealed = mmap(NULL, 32 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill(sealed, 0, 32, 4);
    mprotect(sealed, 32 * PAGE, PROT_NONE);
    unsigned char *own = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill(own, 0, 64, 6);
    madvise(own, 64 * PAGE, MADV_WIPEONFORK);
    unsigned salt = 0;
    int kids = 0;
    if (!strcmp(mode, "tree")) {
        for (int k = 1; k <= 2; k++) {
            if (fork() == 0) {
                fill(own, 0, 64, 6);
                fill(big, 0, pages / 4, (unsigned)k * 17);
                salt = (unsigned)k * 17;
                kids = -1;
                break;
            }
            kids++;
        }
    }
    chunk_at = malloc(sizeof *chunk_at * (pages / CHUNK + 1));
    holds = calloc(pages, sizeof *holds);
    for (size_t p = 0; p < pages; p += CHUNK) chunk_at[p / CHUNK] = big + p * PAGE;
    for (size_t k = 0; !strcmp(mode, "storm") && k < STORMS; k++) {
        storm_at[k] = mmap(NULL, STORM * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memset(storm_at[k], 1, STORM * PAGE);
    }
    pthread_t thread;
    pthread_create(&thread, NULL, thread_main, NULL);
    unsigned char deep[40000];
    for (size_t i = 0; i < sizeof deep; i++) deep[i] = (unsigned char)(i * 3 + 1);
    snprintf(path, sizeof path, "%s/ready-%d", dir, getpid());
    close(open(path, O_CREAT | O_WRONLY, 0600));
    wait_go();

    if (!strcmp(mode, "exit")) { result("ok"); _exit(0); }
    if (!strcmp(mode, "churn") || !strcmp(mode, "storm")) churn();
    if (!strcmp(mode, "hang")) for (;;) { (void)*(volatile unsigned char *)(big + (rand() % pages) * PAGE); }
    size_t skip_from = pages, skip_to = pages;
    unsigned char *q = big + pages / 2 * PAGE;
    size_t eighth = pages / 8;
    if (!strcmp(mode, "fork")) {
        for (int k = 0; k < 6; k++) {
            if (fork() == 0) {
                fill(big, pages - pages / 16, pages, (unsigned)k);
                verify_zero("wiped at the fork", own, 64);
                verify("forked", big, 0, pages - pages / 16, 0, 0);
                verify("forked tail", big, pages - pages / 16, pages, 0, (unsigned)k);
                result("ok");
                _exit(0);
            }
            nanosleep(&(struct timespec){0, 3000000}, NULL);
        }
        int status, bad = 0;
        while (wait(&status) > 0) bad |= status;
        if (bad) fail("child", 0, 0, (unsigned)bad);
    } else if (!strcmp(mode, "dontneed")) {
        skip_from = pages / 2; skip_to = skip_from + eighth;
        for (size_t p = 0; p < eighth; p += 16) madvise(q + p * PAGE, 16 * PAGE, MADV_DONTNEED);
        verify_zero("dontneed", q, eighth);
        memset(q, 0x77, eighth * PAGE);
        nanosleep(&(struct timespec){0, 20000000}, NULL);
        for (size_t i = 0; i < eighth * PAGE; i++) if (q[i] != 0x77) fail("rewritten", i / PAGE, i, q[i]);
    } else if (!strcmp(mode, "munmap")) {
        skip_from = pages / 2; skip_to = skip_from + eighth;
        munmap(q, eighth * PAGE);
        if (mmap(q, eighth * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != q)
            fail("mmap", 0, 0, 0);
        nanosleep(&(struct timespec){0, 20000000}, NULL);
        verify_zero("munmap", q, eighth);
    } else if (!strcmp(mode, "mremap")) {
        skip_from = pages / 2; skip_to = skip_from + eighth;
        // Below: mappings grow downwards, and 64 GiB above may be beyond user space.
        unsigned char *to = mremap(q, eighth * PAGE, eighth * PAGE * 2, MREMAP_MAYMOVE | MREMAP_FIXED,
                                   big - (1UL << 36));
        if (to == MAP_FAILED) fail("mremap", 0, 0, 0);
        verify("moved", to - skip_from * PAGE, skip_from, skip_to, 0, 0);
        verify_zero("grown", to + eighth * PAGE, eighth);
    } else if (!strcmp(mode, "split")) {
        for (size_t p = 1; p < pages; p += pages / 300 + 2)
            mprotect(big + p * PAGE, PAGE, PROT_READ);
    }
    if (salt) {
        verify("own", big, 0, pages / 4, 0, salt);
        verify("inherited", big, pages / 4, pages, 0, 0);
    } else {
        verify("big", big, 0, skip_from, 0, 0);
        verify("big tail", big, skip_to, pages, 0, 0);
    }
    verify_file();
    verify("kept from children", own, 0, 64, 0, 6);
    verify("locked", locked, 0, 16, 0, 3);
    mprotect(sealed, 32 * PAGE, PROT_READ);
    verify("sealed", sealed, 0, 32, 0, 4);
    for (size_t i = 0; i < sizeof deep; i++) if (deep[i] != (unsigned char)(i * 3 + 1)) fail("stack", 0, i, deep[i]);
    pthread_join(thread, NULL);
    if (thread_verdict != 1) fail("thread", 0, 0, 0);
    result("ok");
    if (kids > 0) { int status; while (wait(&status) > 0); }
    return 0;
}
