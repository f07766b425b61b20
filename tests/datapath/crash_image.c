/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/datapath/crash_image.h"

#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "datapath/transfer.h"
#include "tests/lib/vm_frame.h"

void image_path(char out[64])
{
    int fd;

    snprintf(out, 64, "/dev/shm/moat-test-XXXXXX");
    fd = mkstemp(out);
    ck_assert_int_ge(fd, 0);
    close(fd);
}

/* --- what is told --- */

static uint64_t fnv(const void *p, size_t n)
{
    uint64_t h = 0xcbf29ce484222325;

    for (size_t i = 0; i < n; i++)
        h = (h ^ ((const uint8_t *)p)[i]) * 0x100000001b3;
    return h;
}

static void hex(FILE *f, const void *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        fprintf(f, "%02x", ((const uint8_t *)p)[i]);
}

static void tell_slots(FILE *f, struct rig *r)
{
    struct moat_slot_info s;

    for (uint32_t i = 0; i < r->e->conf.n_slots; i++) {
        if (!moat_slot_info(r->e, i, &s)) {
            fprintf(f, "slot %u free\n", i);
            continue;
        }
        fprintf(
            f,
            "slot %u %s %s epoch %llu conf %016llx enroll %u rules %u generation %llu serial %u "
            "learnt %u ",
            i, s.conf.vnic, moat_slot_state_name(s.state), (unsigned long long)s.conf.epoch,
            (unsigned long long)fnv(&s.conf, offsetof(struct moat_slot_conf, epoch)),
            s.enroll_left_s, s.n_rules, (unsigned long long)s.generation, s.serial, s.n_learnt);
        hex(f, s.digest, sizeof s.digest);
        hex(f, s.learnt, sizeof s.learnt);
        fprintf(f, " pickup %u\n", r->e->slots[i].view->pickup_until);
        fprintf(f, "count %u %u %u\n", i, s.sessions, s.half_open);
    }
}

static void tell_session(FILE *f, const char *vnic, const uint8_t *frame, unsigned what)
{
    uint8_t again[MOAT_SES_LEN6];
    struct moat_ses_rec rec;
    unsigned alen;

    ck_assert_uint_ne(moat_ses_decode(frame + 4, frame[5], &rec), 0);
    alen = rec.family == MOAT_FAM_IP6 ? 16 : 4;
    fprintf(f, "session %s %u %u %u ", vnic, rec.family, rec.proto, rec.vlan);
    hex(f, rec.local, alen);
    fprintf(f, ":%u ", rec.lport);
    hex(f, rec.remote, alen);
    fprintf(f, ":%u | ", rec.rport);
    memset(rec.packets, 0, sizeof rec.packets);
    memset(rec.bytes, 0, sizeof rec.bytes);
    if (rec.flags & MOAT_SES_F_STALE) { /* to be judged again: who admitted it does not count */
        rec.rule = 0;
        rec.generation = 0;
    }
    if (!(what & IMAGE_SIDES))
        memset(rec.side, 0, sizeof rec.side);
    hex(f, again, moat_ses_encode(&rec, again));
    fputc('\n', f);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void tell_sessions(FILE *f, struct rig *r, unsigned what)
{
    static uint8_t buf[65536];
    struct moat_ctl_sessions_reply *reply = (void *)buf;
    struct moat_ctl_sessions ask = {.cursor = 0};
    char *lines[2 * IMAGE_SESSIONS];
    unsigned n = 0;

    do {
        const uint8_t *p = buf + sizeof *reply;

        ck_assert_int_ge(moat_transfer_export(r->e, &ask, buf, sizeof buf), (int)sizeof *reply);
        for (uint32_t i = 0; i < reply->n; i++, p += 4 + p[5]) {
            size_t len;
            FILE *line;

            ck_assert_uint_lt(n, 2 * IMAGE_SESSIONS);
            line = open_memstream(&lines[n++], &len);
            tell_session(line, reply->vnic, p, what);
            fclose(line);
        }
        ask.cursor = reply->cursor;
    } while (ask.cursor);
    qsort(lines, n, sizeof *lines, by_text);
    for (unsigned i = 0; i < n; i++) {
        fputs(lines[i], f);
        free(lines[i]);
    }
}

/* --- probes --- */

struct probing {
    FILE *f;
    struct rig *r;
    unsigned n;
};

static void probe(struct probing *p, unsigned from, unsigned to, const struct frame *frame)
{
    enum moat_reason reason;

    rig_push(p->r, from, MOAT_FROM_VM, frame->data, frame->len, &reason);
    fprintf(p->f, "probe %u %u\n", p->n++, reason);
    rig_push(p->r, to, MOAT_TO_VM, frame->data, frame->len, &reason);
    fprintf(p->f, "probe %u %u\n", p->n++, reason);
}

/* Packets of the middle of connections come first, those that would open sessions last. */
static void tell_verdicts(FILE *f, struct rig *r)
{
    struct probing p = {f, r, 0};

    for (unsigned from = 0; from < RIG_SLOTS; from++)
        for (unsigned to = 0; to < RIG_SLOTS; to++)
            for (uint16_t port = 2000; from != to && port < 2006; port++) {
                struct frame out = vm_tcp(from, to, port, 80, 1001, 5001, MOAT_TCP_ACK, 0);
                struct frame back = vm_tcp(to, from, 80, port, 5001, 1001, MOAT_TCP_ACK, 0);
                struct frame udp = vm_udp(from, to, 53, port);

                probe(&p, from, to, &out);
                probe(&p, to, from, &back);
                probe(&p, from, to, &udp);
            }
    for (unsigned from = 0; from < RIG_SLOTS; from++)
        for (unsigned to = 0; to < RIG_SLOTS; to++) {
            static const uint16_t ports[] = {80, 81, 53, 54};

            for (unsigned i = 0; from != to && i < 4; i++) {
                struct frame udp = vm_udp(from, to, 4000, ports[i]);
                struct frame syn = vm_tcp(from, to, 4000, ports[i], 1, 0, MOAT_TCP_SYN, 0);

                probe(&p, from, to, &udp);
                probe(&p, from, to, &syn);
            }
        }
}

char *image_of_path(const char *path, unsigned what)
{
    char *text;
    size_t len;
    FILE *f = open_memstream(&text, &len);
    struct rig r;

    rig_create_sized(&r, path, IMAGE_SESSIONS);
    if (what & IMAGE_DAMAGED && r.e->n_damaged)
        fprintf(f, "damaged %u %s\n", r.e->n_damaged, r.e->damage);
    else
        ck_assert_msg(!r.e->n_damaged, "%s", r.e->damage);
    tell_slots(f, &r);
    tell_sessions(f, &r, what);
    if (what & IMAGE_PROBES)
        tell_verdicts(f, &r);
    rig_destroy(&r);
    fclose(f);
    return text;
}

void image_write(const struct image_file *file, const char *path)
{
    static const uint8_t zeros[4096];
    int fd = open(path, O_RDWR);

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(ftruncate(fd, (off_t)file->size), 0);
    for (size_t at = 0; at < file->used; at += sizeof zeros)
        if (memcmp(file->bytes + at, zeros, sizeof zeros))
            ck_assert_int_eq(pwrite(fd, file->bytes + at, sizeof zeros, (off_t)at), sizeof zeros);
    close(fd);
}

char *image_of(const struct image_file *file, unsigned what)
{
    char path[64], *text;

    image_path(path);
    image_write(file, path);
    text = image_of_path(path, what);
    unlink(path);
    return text;
}

/* --- between two --- */

static bool has_line(const char *text, const char *line, size_t len)
{
    for (const char *p = text; *p; p = strchr(p, '\n') + 1)
        if (!strncmp(p, line, len))
            return true;
    return false;
}

/* Length of what names a line: up to " | " for a session, the number for the others. */
static size_t key_of(const char *line)
{
    const char *bar = strstr(line, " | "), *end = strchr(line, '\n');

    if (!strncmp(line, "session ", 8) && bar && bar < end)
        return (size_t)(bar - line);
    return (size_t)(strchr(strchr(line, ' ') + 1, ' ') - line);
}

static unsigned count_key(const char *text, const char *key, size_t len)
{
    unsigned n = 0;

    for (const char *p = text; p && *p; p = strchr(p, '\n') + 1)
        n += key_of(p) == len && !memcmp(p, key, len);
    return n;
}

static bool is_count(const char *line)
{
    return !strncmp(line, "count ", 6);
}

bool image_is_between(const char *got, const char *before, const char *after)
{
    for (const char *p = got; *p; p = strchr(p, '\n') + 1) {
        size_t len = (size_t)(strchr(p, '\n') - p) + 1;

        if (!is_count(p) && !has_line(before, p, len) && !has_line(after, p, len))
            return false;
        if (count_key(got, p, key_of(p)) != 1)
            return false;
    }
    for (const char *p = before; *p; p = strchr(p, '\n') + 1)
        if (count_key(after, p, key_of(p)) && !count_key(got, p, key_of(p)))
            return false;
    return true;
}

static void tell_only_in(const char *name, const char *text, const char *a, const char *b)
{
    for (const char *p = text; *p; p = strchr(p, '\n') + 1) {
        int len = (int)(strchr(p, '\n') - p) + 1;
        bool in_a = has_line(a, p, (size_t)len), in_b = has_line(b, p, (size_t)len);

        if (!in_a || !in_b)
            printf("%s%s: %.*s", name, in_a || in_b ? "" : " only", len, p);
    }
}

void image_tell_difference(const char *got, const char *before, const char *after)
{
    tell_only_in("got", got, before, after);
    tell_only_in("before", before, got, after);
    tell_only_in("after", after, got, before);
    fflush(stdout);
}
