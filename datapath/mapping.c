/* SPDX-License-Identifier: Apache-2.0 */

/* Life cycle: open the file, lock it, size it, map it with all pages, then either lay
 * it out (fresh) or check that it is exactly what this engine would have laid out.
 * `complete` is stored last: a crash while laying out leaves a file that the next
 * engine lays out anew. */

#include "mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "session.h"

#define HUGETLBFS_MAGIC_NUMBER 0x958458f6
#define LOCK_TRIES 100 /* of 20 ms: a killed switch may still be on its way out */

static uint64_t align_up(uint64_t v, uint64_t to)
{
    return (v + to - 1) / to * to;
}

/* 17 sessions in two buckets of 10 ways: a load of 0.85 when the table is full. */
static uint32_t buckets_for(uint32_t n_sessions)
{
    return (uint32_t)(((uint64_t)n_sessions * 2 + 16) / 17);
}

static void plan(struct moat_mapping_head *h, uint32_t n_slots, uint32_t n_sessions,
                 uint32_t n_sessions6, uint64_t page)
{
    memset(h, 0, sizeof *h);
    h->magic = MOAT_MAPPING_MAGIC;
    h->layout = MOAT_MAPPING_LAYOUT;
    h->n_slots = n_slots;
    h->n_sessions = n_sessions;
    h->n_sessions6 = n_sessions6;
    h->n_buckets = buckets_for(n_sessions);
    h->ruleset_size = MOAT_RULESET_VNIC_MAX;
    h->session_size = sizeof(struct moat_session);
    h->cold_size = sizeof(struct moat_session_cold);
    h->slot_size = sizeof(struct moat_slot_rec);
    h->slots_off = align_up(sizeof *h, 4096);
    h->rulesets_off = align_up(h->slots_off + (uint64_t)n_slots * h->slot_size, 4096);
    h->sessions_off = align_up(h->rulesets_off + (uint64_t)n_slots * 2 * h->ruleset_size, 4096);
    h->cold_off = align_up(h->sessions_off + (uint64_t)n_sessions * h->session_size, 4096);
    h->addrs6_off = align_up(h->cold_off + (uint64_t)n_sessions * h->cold_size, 4096);
    h->buckets_off = align_up(h->addrs6_off + (uint64_t)n_sessions6 * 32, 4096);
    h->size = align_up(h->buckets_off + (uint64_t)h->n_buckets * sizeof(struct moat_bucket), page);
}

static uint64_t sum_of(const struct moat_mapping_head *h)
{
    struct moat_mapping_head copy = *h;

    copy.complete = 0;
    return XXH3_64bits(&copy, offsetof(struct moat_mapping_head, sum));
}

static void read_boot_id(char out[40])
{
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = -1;

    memset(out, 0, 40);
    if (fd >= 0) {
        n = read(fd, out, 36);
        close(fd);
    }
    if (n != 36)
        memset(out, 0, 40);
}

static int lock_file(int fd)
{
    for (int i = 0; i < LOCK_TRIES; i++) {
        if (!flock(fd, LOCK_EX | LOCK_NB))
            return 0;
        if (errno != EWOULDBLOCK)
            return -errno;
        usleep(20000);
    }
    return -EWOULDBLOCK;
}

/* 0: it is what we would have made.  1: lay it out anew.  -1: refuse, err says why. */
static int examine(const struct moat_mapping_head *found, const struct moat_mapping_head *want,
                   const char *path, char *err, size_t err_size)
{
    if (!found->magic && !found->complete)
        return 1;
    if (found->magic != MOAT_MAPPING_MAGIC) {
        snprintf(err, err_size,
                 "%s: not a Moat mapping (magic %#llx); remove the file to start empty", path,
                 (unsigned long long)found->magic);
        return -1;
    }
    if (found->layout == want->layout && found->complete &&
        (found->complete != MOAT_MAPPING_COMPLETE || found->sum != sum_of(found))) {
        snprintf(err, err_size,
                 "%s: damaged, the checksum of its header is wrong; remove the file to start empty",
                 path);
        return -1;
    }
    if (!found->complete)
        return 1;
    if (found->layout != want->layout) {
        snprintf(err, err_size,
                 "%s: has layout %u, this engine has layout %u; start the engine that made it, or "
                 "remove the file to start empty",
                 path, found->layout, want->layout);
        return -1;
    }
    if (memcmp(found->boot_id, want->boot_id, sizeof found->boot_id))
        return 1;
    if (memcmp(&found->n_slots, &want->n_slots,
               offsetof(struct moat_mapping_head, seed) -
                   offsetof(struct moat_mapping_head, n_slots))) {
        snprintf(
            err, err_size,
            "%s: has %u slots and %u sessions (%u of them for IPv6), this engine has %u and %u "
            "(%u); start the engine with the same sizes, or remove the file to start empty",
            path, found->n_slots, found->n_sessions, found->n_sessions6, want->n_slots,
            want->n_sessions, want->n_sessions6);
        return -1;
    }
    return 0;
}

static int open_file(const char *path, uint64_t *page, char *err, size_t err_size)
{
    struct statfs fs;
    struct stat st;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0) {
        snprintf(err, err_size, "%s: cannot open: %s; remove it if it is no plain file", path,
                 strerror(errno));
        return -1;
    }
    if (lock_file(fd)) {
        snprintf(err, err_size, "%s: is in use by another process", path);
        close(fd);
        return -1;
    }
    if (fstat(fd, &st) || fstatfs(fd, &fs)) {
        snprintf(err, err_size, "%s: %s", path, strerror(errno));
        close(fd);
        return -1;
    }
    /* Who could write to it may have, or may have it open still. */
    if (!S_ISREG(st.st_mode) || st.st_uid != geteuid() || st.st_mode & 077) {
        snprintf(err, err_size,
                 "%s: owned by user %u with mode %04o: must be a file of user %u that nobody else "
                 "may open (0600); remove it to start empty",
                 path, st.st_uid, st.st_mode & 07777, geteuid());
        close(fd);
        return -1;
    }
    *page = fs.f_type == HUGETLBFS_MAGIC_NUMBER ? (uint64_t)fs.f_bsize : 4096;
    return fd;
}

static void *map_file(int fd, const char *path, uint64_t size, char *err, size_t err_size)
{
    struct stat st;
    void *p;
    int rc;

    if (fstat(fd, &st) || (st.st_size && (uint64_t)st.st_size != size)) {
        snprintf(err, err_size,
                 "%s: has %lld bytes, this engine needs %llu; start it with the same sizes as "
                 "before, or remove the file to start empty",
                 path, (long long)st.st_size, (unsigned long long)size);
        return NULL;
    }
    rc = !st.st_size && ftruncate(fd, (off_t)size) ? errno : posix_fallocate(fd, 0, (off_t)size);
    if (rc) {
        snprintf(
            err, err_size,
            "%s: cannot allocate %llu MiB: %s; free memory there (hugepages: vm.nr_hugepages), "
            "or ask for fewer slots and sessions",
            path, (unsigned long long)(size >> 20), strerror(rc));
        if (!st.st_size)
            unlink(path);
        return NULL;
    }
    p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (p == MAP_FAILED) {
        snprintf(err, err_size, "%s: cannot map %llu MiB: %s", path,
                 (unsigned long long)(size >> 20), strerror(errno));
        return NULL;
    }
    return p;
}

static int lay_out(struct moat_mapping_head *h, const struct moat_mapping_head *want,
                   const uint64_t *seed)
{
    __atomic_store_n(&h->complete, 0, __ATOMIC_SEQ_CST);
    memset((uint8_t *)h + want->slots_off, 0, want->rulesets_off - want->slots_off);
    memset((uint8_t *)h + want->sessions_off, 0, want->size - want->sessions_off);
    *h = *want;
    if (seed)
        memcpy(h->seed, seed, sizeof h->seed);
    else if (getrandom(h->seed, sizeof h->seed, 0) != sizeof h->seed)
        return -1;
    h->sum = sum_of(h);
    __atomic_store_n(&h->complete, MOAT_MAPPING_COMPLETE, __ATOMIC_SEQ_CST);
    return 0;
}

static void place(struct moat_mapping *m, void *base, const struct moat_mapping_head *want)
{
    m->head = base;
    m->slots = (void *)((uint8_t *)base + want->slots_off);
    m->rulesets = (uint8_t *)base + want->rulesets_off;
    m->sessions = (void *)((uint8_t *)base + want->sessions_off);
    m->cold = (void *)((uint8_t *)base + want->cold_off);
    m->addrs6 = (void *)((uint8_t *)base + want->addrs6_off);
    m->buckets = (void *)((uint8_t *)base + want->buckets_off);
}

void moat_mapping_next_name(const char *path, char *out, size_t size)
{
    snprintf(out, size, "%s.next", path);
}

struct moat_mapping *moat_mapping_share(int fd, const char *path, uint32_t n_slots,
                                        uint32_t n_sessions, uint32_t n_sessions6, char *err,
                                        size_t err_size)
{
    struct moat_mapping *m = calloc(1, sizeof *m);
    struct moat_mapping_head want;
    struct statfs fs;
    void *base;

    if (!m) {
        snprintf(err, err_size, "out of memory");
        return NULL;
    }
    /* The lock belongs to what is open, and goes with its last descriptor. */
    m->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (m->fd < 0 || fstatfs(m->fd, &fs)) {
        snprintf(err, err_size, "%s: %s", path, strerror(errno));
        goto fail;
    }
    plan(&want, n_slots, n_sessions, n_sessions6,
         fs.f_type == HUGETLBFS_MAGIC_NUMBER ? (uint64_t)fs.f_bsize : 4096);
    read_boot_id(want.boot_id);
    base = map_file(m->fd, path, want.size, err, err_size);
    if (!base)
        goto fail;
    if (examine(base, &want, path, err, err_size)) {
        munmap(base, want.size);
        goto fail;
    }
    place(m, base, &want);
    return m;

fail:
    if (m->fd >= 0)
        close(m->fd);
    free(m);
    return NULL;
}

struct moat_mapping *moat_mapping_open(const char *path, uint32_t n_slots, uint32_t n_sessions,
                                       uint32_t n_sessions6, const uint64_t *seed, char *err,
                                       size_t err_size)
{
    struct moat_mapping *m = calloc(1, sizeof *m);
    struct moat_mapping_head want;
    uint64_t page = 4096;
    void *base = NULL;
    int fit = 1;

    if (!m) {
        snprintf(err, err_size, "out of memory");
        return NULL;
    }
    m->fd = -1;
    if (path) {
        m->fd = open_file(path, &page, err, err_size);
        if (m->fd < 0)
            goto fail;
    }
    plan(&want, n_slots, n_sessions, n_sessions6, page);
    read_boot_id(want.boot_id);
    if (path) {
        base = map_file(m->fd, path, want.size, err, err_size);
        if (!base)
            goto fail;
        fit = examine(base, &want, path, err, err_size);
        if (fit < 0)
            goto fail_unmap;
    } else {
        base = mmap(NULL, want.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base == MAP_FAILED) {
            snprintf(err, err_size, "cannot allocate %llu MiB",
                     (unsigned long long)want.size >> 20);
            goto fail;
        }
    }
    m->fresh = fit == 1;
    if (m->fresh && lay_out(base, &want, seed)) {
        snprintf(err, err_size, "no random numbers for the session hash");
        goto fail_unmap;
    }
    place(m, base, &want);
    return m;

fail_unmap:
    munmap(base, want.size);
fail:
    if (m->fd >= 0)
        close(m->fd);
    free(m);
    return NULL;
}

void moat_mapping_close(struct moat_mapping *m)
{
    if (m) {
        munmap(m->head, m->head->size);
        if (m->fd >= 0)
            close(m->fd);
        free(m);
    }
}
