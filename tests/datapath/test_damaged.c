/* SPDX-License-Identifier: Apache-2.0 */

/* A mapping that is damaged, of another layout or size, or not ours alone: no bit of header, slot
 * records or rulesets changes unnoticed, and what cannot be believed is refused with a reason. */

#include <check.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/datapath/crash_image.h"
#include "tests/lib/choice.h"
#include "tests/lib/vm_frame.h"

static const char policy[] = "policy \"t\" version 1\n"
                             "service names = udp 53\n"
                             "tier main { allow from any to any service names }\n"
                             "default drop\n";

static uint64_t now_ms(void)
{
    return rig_clock_ms;
}

static struct moat_engine_conf conf_of(const char *path)
{
    return (struct moat_engine_conf){
        .mapping = path, .n_slots = RIG_SLOTS + 1, .n_sessions = IMAGE_SESSIONS, .now_ms = now_ms};
}

/* No engine, and a reason that names the file and what to do. */
static void refused(const char *path, const char *why)
{
    struct moat_engine_conf conf = conf_of(path);
    char err[512] = "";

    ck_assert_ptr_null(moat_engine_create(&conf, err, sizeof err));
    ck_assert_msg(strstr(err, path) == err, "%s", err);
    ck_assert_msg(strstr(err, why) != NULL, "%s", err);
    ck_assert_msg(strstr(err, "remove ") || strstr(err, "fewer "), "%s", err);
}

static const struct moat_mapping_head *head_of(const struct image_file *f)
{
    return (const struct moat_mapping_head *)f->bytes;
}

/* Three slots with policy; slot 0 was claimed and published twice; a few sessions. */
static void make(char path[64], struct image_file *f)
{
    struct moat_mapping_head *h;
    struct rig r;

    rig_clock_ms = 1000000;
    image_path(path);
    rig_create_sized(&r, path, IMAGE_SESSIONS);
    for (unsigned i = 0; i < RIG_SLOTS; i++) {
        rig_claim(&r, i, MOAT_SLOT_ACTIVE);
        rig_publish(&r, i, policy);
    }
    rig_claim(&r, 0, MOAT_SLOT_ACTIVE);
    rig_publish(&r, 0, policy);
    for (uint16_t port = 2000; port < 2005; port++) {
        struct frame udp = vm_udp(0, 1, port, 53);

        ck_assert(rig_between(&r, 0, 1, udp.data, udp.len));
    }
    h = r.e->map->head;
    f->used = h->buckets_off;
    f->size = h->size;
    f->bytes = malloc(f->used);
    ck_assert_ptr_nonnull(f->bytes);
    memcpy(f->bytes, h, f->used);
    rig_destroy(&r);
}

static void flip(struct image_file *f, size_t bit)
{
    f->bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
}

START_TEST(no_bit_of_the_header_changes_unnoticed)
{
    size_t bits = (offsetof(struct moat_mapping_head, sum) + 8) * 8;
    struct image_file f;
    char path[64];

    make(path, &f);
    for (size_t bit = 0; bit < bits; bit++) {
        flip(&f, bit);
        image_write(&f, path);
        refused(path, "");
        flip(&f, bit);
    }
    free(f.bytes);
    unlink(path);
}
END_TEST

/* Tells of n bytes at `off` whether a flipped bit, every `step`th of them, was noticed: it must
 * be if `matters`, and must not change anything if not. */
static void flip_through(struct image_file *f, const char *what, size_t off, size_t n, size_t step,
                         bool matters)
{
    char *whole = image_of(f, IMAGE_ALL);

    for (size_t bit = off * 8; bit < (off + n) * 8; bit += step) {
        char *got;

        flip(f, bit);
        got = image_of(f, IMAGE_ALL | IMAGE_DAMAGED);
        if (matters)
            ck_assert_msg(!strncmp(got, "damaged 1 ", 10), "%s, bit %zu: unnoticed", what,
                          bit - off * 8);
        else
            ck_assert_msg(!strcmp(got, whole), "%s, bit %zu: %s", what, bit - off * 8, got);
        free(got);
        flip(f, bit);
    }
    free(whole);
}

START_TEST(no_bit_of_a_slot_changes_unnoticed)
{
    const struct moat_slot_rec *rec;
    struct image_file f;
    size_t at, used, unused;
    char path[64];

    make(path, &f);
    at = head_of(&f)->slots_off;
    rec = (const struct moat_slot_rec *)(f.bytes + at);
    used = at + offsetof(struct moat_slot_rec, conf) + rec->conf_index * sizeof *rec->conf;
    unused = at + offsetof(struct moat_slot_rec, conf) + !rec->conf_index * sizeof *rec->conf;
    flip_through(&f, "fields", at, MOAT_SLOT_FIELDS + 8, 3, true);
    flip_through(&f, "old fields", at + offsetof(struct moat_slot_rec, before), MOAT_SLOT_FIELDS, 5,
                 false);
    flip_through(&f, "configuration", used, sizeof *rec->conf, 29, true);
    flip_through(&f, "old configuration", unused, sizeof *rec->conf, 101, false);
    at += 3 * sizeof *rec;
    flip_through(&f, "a free slot's fields", at, MOAT_SLOT_FIELDS + 8, 7, true);
    free(f.bytes);
    unlink(path);
}
END_TEST

START_TEST(no_bit_of_a_ruleset_changes_unnoticed)
{
    const struct moat_slot_rec *rec;
    struct image_file f;
    size_t at;
    char path[64];

    make(path, &f);
    rec = (const struct moat_slot_rec *)(f.bytes + head_of(&f)->slots_off);
    at = head_of(&f)->rulesets_off;
    flip_through(&f, "ruleset", at + rec->rules_index * MOAT_RULESET_VNIC_MAX,
                 rec->rules_len[rec->rules_index], 37, true);
    flip_through(&f, "old ruleset", at + !rec->rules_index * MOAT_RULESET_VNIC_MAX,
                 rec->rules_len[!rec->rules_index], 131, false);
    free(f.bytes);
    unlink(path);
}
END_TEST

static unsigned count_lines(const char *text, const char *start)
{
    unsigned n = 0;

    for (const char *p = text; *p; p = strchr(p, '\n') + 1)
        n += !strncmp(p, start, strlen(start));
    return n;
}

/* A session has no checksum: it would cost every packet.  Damage stays with that session. */
START_TEST(a_damaged_session_harms_no_other)
{
    struct image_file f;
    struct choice c;
    char path[64], *whole;
    unsigned lines;

    make(path, &f);
    whole = image_of(&f, IMAGE_SIDES);
    lines = count_lines(whole, "session");
    ck_assert_uint_eq(lines, 10);
    choice_seed(&c, 1);
    for (unsigned i = 0; i < 400; i++) {
        size_t off = head_of(&f)->sessions_off;
        size_t bit = off * 8 + choice_below(&c, (uint32_t)(f.used - off) * 8);
        unsigned same = 0;
        char *got;

        flip(&f, bit);
        got = image_of(&f, IMAGE_SIDES);
        for (const char *p = got; *p; p = strchr(p, '\n') + 1) {
            int len = (int)(strchr(p, '\n') - p) + 1;
            char line[1024];

            snprintf(line, sizeof line, "%.*s", len, p);
            same += !strncmp(line, "session", 7) && strstr(whole, line);
        }
        ck_assert_uint_ge(same + 1, lines);
        ck_assert_uint_le(count_lines(got, "session"), lines + 1);
        free(got);
        flip(&f, bit);
    }
    free(whole);
    free(f.bytes);
    unlink(path);
}
END_TEST

static bool sends(struct moat_engine *e, const char *port_path)
{
    struct frame udp = vm_udp(0, 1, 2000, 53);
    struct moat_pkt p = {.data = udp.data, .len = udp.len, .total = udp.len};
    struct moat_port *port = moat_port_register(e, port_path);

    ck_assert_ptr_nonnull(port);
    return moat_pipe_burst(moat_thread_self(e), port, MOAT_FROM_VM, &p, 1);
}

/* Which port was that of a damaged record is not known: what the host says of damage is for all
 * that have no slot.  The others are not touched. */
START_TEST(the_host_decides_for_a_damaged_slot)
{
    static const struct {
        uint8_t unclaimed, on_damaged;
    } rows[] = {{MOAT_FAIL_BLOCK, MOAT_FAIL_BLOCK},
                {MOAT_FAIL_BLOCK, MOAT_FAIL_ALLOW},
                {MOAT_FAIL_ALLOW, MOAT_FAIL_BLOCK},
                {MOAT_FAIL_ALLOW, MOAT_FAIL_ALLOW}};
    struct moat_slot_conf c;
    struct image_file f;
    char path[64], err[256];

    make(path, &f);
    f.bytes[head_of(&f)->slots_off + offsetof(struct moat_slot_rec, epoch)] ^= 4;
    rig_conf(0, MOAT_SLOT_ACTIVE, &c);
    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct moat_engine_conf conf = conf_of(path);
        struct moat_engine *e;

        conf.unclaimed = rows[i].unclaimed;
        conf.on_damaged = rows[i].on_damaged;
        image_write(&f, path);
        e = moat_engine_create(&conf, err, sizeof err);
        ck_assert_ptr_nonnull(e);
        ck_assert_uint_eq(e->n_damaged, 1);
        ck_assert_str_eq(e->damage, "the record of slot 0: the checksum of its state is wrong");
        ck_assert_uint_eq(e->recovered_slots, 2);
        ck_assert(sends(e, c.path) == (rows[i].on_damaged == MOAT_FAIL_ALLOW));
        ck_assert(moat_slot_find(e, rig_vnic[1]) >= 0);
        /* Claimed again, it is a slot like any other; the damage is not found twice. */
        ck_assert_int_eq(moat_slot_claim(e, &c, err, sizeof err), 0);
        moat_engine_destroy(e);
        conf.unclaimed = MOAT_FAIL_BLOCK;
        e = moat_engine_create(&conf, err, sizeof err);
        ck_assert_ptr_nonnull(e);
        ck_assert_uint_eq(e->n_damaged, 0);
        ck_assert_uint_eq(e->recovered_slots, 3);
        moat_engine_destroy(e);
    }
    free(f.bytes);
    unlink(path);
}
END_TEST

START_TEST(another_size_is_refused)
{
    struct image_file f;
    char path[64];
    off_t sizes[] = {1, 4096, 0, 0};

    make(path, &f);
    sizes[2] = (off_t)f.size - 4096;
    sizes[3] = (off_t)f.size + 4096;
    for (unsigned i = 0; i < 4; i++) {
        image_write(&f, path);
        ck_assert_int_eq(truncate(path, sizes[i]), 0);
        refused(path, "bytes, this engine needs");
    }
    free(f.bytes);
    unlink(path);
}
END_TEST

START_TEST(another_layout_is_refused)
{
    struct moat_mapping_head *h;
    struct image_file f;
    char path[64];

    make(path, &f);
    h = (struct moat_mapping_head *)f.bytes;
    h->layout++;
    image_write(&f, path);
    refused(path, "layout");
    h->layout = 1;
    image_write(&f, path);
    refused(path, "layout");
    free(f.bytes);
    unlink(path);
}
END_TEST

START_TEST(what_others_may_write_is_refused)
{
    static const mode_t modes[] = {0660, 0640, 0606, 0604, 0666};
    struct image_file f;
    char path[64], link[80];

    make(path, &f);
    for (unsigned i = 0; i < sizeof modes / sizeof *modes; i++) {
        ck_assert_int_eq(chmod(path, modes[i]), 0);
        refused(path, "nobody else may open");
    }
    ck_assert_int_eq(chmod(path, 0600), 0);
    if (!geteuid()) {
        ck_assert_int_eq(chown(path, 65534, 0), 0);
        refused(path, "owned by user 65534");
        ck_assert_int_eq(chown(path, 0, 0), 0);
    }
    snprintf(link, sizeof link, "%s.link", path);
    ck_assert_int_eq(symlink(path, link), 0);
    refused(link, "cannot open");
    unlink(link);
    free(image_of_path(path, 0)); /* and it is as good as it was */
    free(f.bytes);
    unlink(path);
}
END_TEST

/* All of its memory is there from the start, or there is no mapping: never SIGBUS later. */
START_TEST(too_little_memory_is_refused)
{
    struct rlimit limit = {1 << 20, 1 << 20};
    char path[64];

    image_path(path);
    unlink(path);
    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    refused(path, "cannot allocate");
    ck_assert_int_ne(access(path, F_OK), 0); /* nothing is left behind */
}
END_TEST

int main(void)
{
    Suite *s = suite_create("damaged");
    TCase *tc = tcase_create("mapping");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, no_bit_of_the_header_changes_unnoticed);
    tcase_add_test(tc, no_bit_of_a_slot_changes_unnoticed);
    tcase_add_test(tc, no_bit_of_a_ruleset_changes_unnoticed);
    tcase_add_test(tc, a_damaged_session_harms_no_other);
    tcase_add_test(tc, the_host_decides_for_a_damaged_slot);
    tcase_add_test(tc, another_size_is_refused);
    tcase_add_test(tc, another_layout_is_refused);
    tcase_add_test(tc, what_others_may_write_is_refused);
    tcase_add_test(tc, too_little_memory_is_refused);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
