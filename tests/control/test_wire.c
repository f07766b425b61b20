/* SPDX-License-Identifier: Apache-2.0 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "moat/ruleset.h"
#include "moat/session.h"
#include "wire.h"

static uint8_t buf[MOAT_WIRE_HEAD + MOAT_WIRE_MAX], blob[MOAT_RULESET_VNIC_MAX];
static uint8_t frames[3 * MOAT_SES_FRAME_MAX];
static size_t frames_len;

static void make_frames(void)
{
    struct moat_ses_rec r = {.family = 4, .proto = 6, .lport = 80, .rport = 1};

    frames_len = 0;
    for (int i = 0; i < 3; i++) {
        r.family = i == 1 ? 6 : 4;
        memset(frames + frames_len, 0xab, 4);
        frames_len += 4 + moat_ses_encode(&r, frames + frames_len + 4);
    }
}

/* A frame of each type with every field set. */
static struct wire sample(unsigned type)
{
    struct wire w = {.type = (uint16_t)type, .epoch = 0x1122334455667788, .ok = true,
                     .flags = 1,  .round = 3,     .records = 1000, .final_records = 7,
                     .final_bytes = 700, .live = 990, .accepted = 999, .refused = 1,
                     .wait_us = 12345, .generation = 9, .n = 3};

    strcpy(w.vnic, "vnic-1");
    strcpy(w.host, "host-a");
    strcpy(w.text, "because");
    strcpy(w.conf.vnic, "vnic-1");
    strcpy(w.conf.vm, "db");
    strcpy(w.conf.network, "lan");
    memcpy(w.conf.mac, "\x52\x54\0\0\0\1", 6);
    w.conf.n_addrs = 2;
    w.conf.addrs[0] = (struct moat_addr){.family = 4, .plen = 32, .addr = {10, 0, 0, 1}};
    w.conf.addrs[1] = (struct moat_addr){.family = 6, .plen = 64, .addr = {0xfd}};
    struct moat_settings *s = &w.conf.settings;
    moat_settings_init(s);
    s->spoof = MOAT_SPOOF_LEARN;
    s->vlan = MOAT_VLAN_INSPECT;
    s->n_ethertypes = 3;
    s->ethertypes[0] = 0x88cc;
    s->ethertypes[1] = 0x0600;
    s->ethertypes[2] = 0xffff;
    s->enroll_s = MOAT_ENROLL_MAX;
    s->max_half_open = 1;
    s->max_new = 2;
    s->max_fragments = 3;
    s->max_logs = UINT32_MAX;
    for (unsigned t = 0; t < MOAT_N_TIMERS; t++)
        s->timers[t] = t ? t : MOAT_TIMER_MAX;
    w.enroll_left_s = 599;
    w.conf.epoch = 5;
    memset(w.digest, 0xcd, sizeof w.digest);
    if (type == WIRE_POLICY) {
        w.blob = blob;
        w.blob_len = 500;
    } else if (type == WIRE_SESSIONS) {
        make_frames();
        w.blob = frames;
        w.blob_len = frames_len;
    }
    return w;
}

START_TEST(round_trip)
{
    struct wire in = sample((unsigned)_i), out;
    const char *why = NULL;
    static uint8_t again[sizeof buf];

    size_t n = wire_encode(&in, buf, sizeof buf);
    ck_assert_uint_gt(n, 0);
    ck_assert_int_eq(wire_frame_len(buf, n, &why), (long)n);
    ck_assert_msg(!wire_decode(buf, n, &out, &why), "%s", why);
    ck_assert_uint_eq(out.type, in.type);
    /* What was decoded encodes to the same bytes. */
    ck_assert_uint_eq(wire_encode(&out, again, sizeof again), n);
    ck_assert_mem_eq(buf, again, n);
    if (_i == WIRE_POLICY) {
        ck_assert_mem_eq(&in.conf, &out.conf, sizeof in.conf);
        ck_assert_uint_eq(out.blob_len, 500);
        ck_assert_uint_eq(out.generation, 9);
        ck_assert_uint_eq(out.enroll_left_s, 599);
    } else if (_i == WIRE_FINAL) {
        ck_assert_uint_eq(out.records, 1000);
        ck_assert_uint_eq(out.epoch, in.epoch);
        ck_assert_uint_eq(out.live, 990);
        ck_assert_uint_eq(out.flags, 1);
    } else if (_i == WIRE_REFUSE) {
        ck_assert_uint_eq(out.flags, 1);
        ck_assert_str_eq(out.text, "because");
    } else if (_i == WIRE_REQUEST) {
        ck_assert_str_eq(out.vnic, "vnic-1");
        ck_assert_str_eq(out.host, "host-a");
    }
}
END_TEST

/* No prefix of a frame is a frame, whether or not its length says so. */
START_TEST(truncated)
{
    struct wire in = sample((unsigned)_i), out;
    const char *why = NULL;
    size_t n = wire_encode(&in, buf, sizeof buf);

    for (size_t k = 0; k < n; k++) {
        uint8_t *cut = malloc(k ? k : 1); /* exact size: a sanitizer sees an over-read */
        memcpy(cut, buf, k);
        ck_assert_int_eq(wire_decode(cut, k, &out, &why), -EPROTO);
        if (k >= MOAT_WIRE_HEAD) {
            moat_put_be(cut + 8, k - MOAT_WIRE_HEAD, 4);
            int rc = wire_decode(cut, k, &out, &why);
            /* A shorter list of sessions does not match its count either. */
            ck_assert_msg(rc == -EPROTO, "%s cut to %zu bytes", wire_type_name(in.type), k);
        }
        free(cut);
    }
}
END_TEST

START_TEST(trailing)
{
    struct wire in = sample((unsigned)_i), out;
    const char *why = NULL;
    size_t n = wire_encode(&in, buf, sizeof buf - 1);

    buf[n] = 0;
    moat_put_be(buf + 8, n + 1 - MOAT_WIRE_HEAD, 4);
    ck_assert_int_eq(wire_decode(buf, n + 1, &out, &why), -EPROTO);
}
END_TEST

/* What does not fit is not written, and nothing is written past the end. */
START_TEST(small_buffer)
{
    struct wire in = sample((unsigned)_i);
    size_t n = wire_encode(&in, buf, sizeof buf);

    for (size_t k = 0; k < n; k++) {
        uint8_t *small = malloc(k ? k : 1);
        ck_assert_uint_eq(wire_encode(&in, small, k), 0);
        free(small);
    }
}
END_TEST

/* Any byte may be anything: no crash, and what passes is within its limits. */
START_TEST(mutated)
{
    struct wire in = sample((unsigned)_i), out;
    const char *why;
    size_t n = wire_encode(&in, buf, sizeof buf);

    srandom(1);
    for (int k = 0; k < 20000; k++) {
        uint8_t *p = malloc(n);
        memcpy(p, buf, n);
        for (int m = random() % 4; m >= 0; m--)
            p[random() % (long)n] = (uint8_t)random();
        why = NULL;
        if (wire_decode(p, n, &out, &why)) {
            ck_assert_ptr_nonnull(why);
        } else {
            ck_assert_uint_lt(out.type, WIRE_N_TYPES);
            ck_assert_uint_le(out.conf.n_addrs, MOAT_ADDRS_MAX);
            ck_assert(memchr(out.vnic, 0, sizeof out.vnic) && memchr(out.text, 0, sizeof out.text));
            ck_assert(!out.blob_len || (out.blob >= p && out.blob + out.blob_len <= p + n));
        }
        free(p);
    }
}
END_TEST

struct hostile {
    const char *what;
    unsigned type;
    size_t at;      /* byte to change */
    uint8_t len;    /* how many */
    uint64_t value;
};

/* Where the settings of the sample POLICY begin: behind head, names, MAC and addresses. */
#define SETTINGS (12 + 8 + 4 + 5 + 7 + 2 * 18)

static const struct hostile hostile[] = {
    {"magic", WIRE_START, 0, 4, 0},
    {"version", WIRE_START, 4, 2, MOAT_WIRE_VERSION + 1},
    {"type 0", WIRE_START, 6, 2, 0},
    {"type too high", WIRE_START, 6, 2, WIRE_N_TYPES},
    {"huge length", WIRE_START, 8, 4, UINT32_MAX},
    {"length beyond the limit", WIRE_START, 8, 4, MOAT_WIRE_MAX + 1},
    {"string longer than the frame", WIRE_REQUEST, 14, 2, 0xffff},
    {"string longer than its field", WIRE_REQUEST, 14, 2, MOAT_ID_MAX},
    {"NUL in a string", WIRE_REQUEST, 16, 1, 0},
    {"escape in a string", WIRE_REFUSE, 16, 1, 0x1b},
    {"more addresses than there is room for", WIRE_POLICY, 12 + 8 + 4 + 5 + 6, 1, 255},
    {"family of an address", WIRE_POLICY, 12 + 8 + 4 + 5 + 7, 1, 7},
    {"prefix length of an address", WIRE_POLICY, 12 + 8 + 4 + 5 + 8, 1, 33},
    {"setting out of range", WIRE_POLICY, SETTINGS, 1, 9},
    {"VLAN setting", WIRE_POLICY, SETTINGS + 7, 1, MOAT_VLAN_INSPECT + 1},
    {"guard neither on nor off", WIRE_POLICY, SETTINGS + 8, 1, 2},
    {"more ethertypes than there is room for", WIRE_POLICY, SETTINGS + 10, 1, 5},
    {"IPv4 as ethertype", WIRE_POLICY, SETTINGS + 11, 2, 0x0800},
    {"a tag as ethertype", WIRE_POLICY, SETTINGS + 11, 2, 0x8100},
    {"a length as ethertype", WIRE_POLICY, SETTINGS + 13, 2, 0x05ff},
    {"an ethertype behind the last", WIRE_POLICY, SETTINGS + 17, 2, 0x88cc},
    {"pickup for days", WIRE_POLICY, SETTINGS + 19, 4, MOAT_PICKUP_MAX + 1},
    {"hold for hours", WIRE_POLICY, SETTINGS + 23, 4, MOAT_HOLD_MAX + 1},
    {"enrolment for days", WIRE_POLICY, SETTINGS + 27, 4, MOAT_ENROLL_MAX + 1},
    {"first timer", WIRE_POLICY, SETTINGS + 51, 4, MOAT_TIMER_MAX + 1},
    {"last timer", WIRE_POLICY, SETTINGS + 51 + 4 * (MOAT_N_TIMERS - 1), 4, UINT32_MAX},
    {"rest of an enrolment", WIRE_POLICY, SETTINGS + 51 + 4 * MOAT_N_TIMERS + 8, 4,
     MOAT_ENROLL_MAX + 1},
    {"more records than there are", WIRE_SESSIONS, 16, 4, UINT32_MAX},
    {"fewer records than there are", WIRE_SESSIONS, 16, 4, 1},
    {"length of a record", WIRE_SESSIONS, 20 + 5, 1, 255},
    {"version of a record", WIRE_SESSIONS, 20 + 4, 1, 0},
    {"neither yes nor no", WIRE_TAKEN_BACK, 20, 1, 2},
};

START_TEST(hostile_fields)
{
    const struct hostile *h = &hostile[_i];
    struct wire in = sample(h->type), out;
    const char *why = NULL;
    size_t n = wire_encode(&in, buf, sizeof buf);

    ck_assert_int_eq(wire_decode(buf, n, &out, &why), 0);
    moat_put_be(buf + h->at, h->value, h->len);
    ck_assert_msg(wire_decode(buf, n, &out, &why) == -EPROTO, "%s was accepted", h->what);
}
END_TEST

START_TEST(oversized)
{
    struct wire w = sample(WIRE_POLICY);

    w.blob_len = MOAT_RULESET_VNIC_MAX;
    ck_assert_uint_gt(wire_encode(&w, buf, sizeof buf), MOAT_RULESET_VNIC_MAX);
    w.blob_len++;
    ck_assert_uint_eq(wire_encode(&w, buf, sizeof buf), 0);
    w = sample(WIRE_REQUEST);
    memset(w.vnic, 'x', sizeof w.vnic); /* no end */
    ck_assert_uint_eq(wire_encode(&w, buf, sizeof buf), 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("wire");
    TCase *t = tcase_create("frames");

    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, round_trip, 1, WIRE_N_TYPES);
    tcase_add_loop_test(t, truncated, 1, WIRE_N_TYPES);
    tcase_add_loop_test(t, trailing, 1, WIRE_N_TYPES);
    tcase_add_loop_test(t, small_buffer, 1, WIRE_N_TYPES);
    tcase_add_loop_test(t, mutated, 1, WIRE_N_TYPES);
    tcase_add_loop_test(t, hostile_fields, 0, sizeof hostile / sizeof *hostile);
    tcase_add_test(t, oversized);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
