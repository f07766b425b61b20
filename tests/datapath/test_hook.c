/* SPDX-License-Identifier: Apache-2.0 */

/* The hook with real mbufs, a real filter core and a vhost library of straw: who gets
 * which packet, that every refused one is freed, that segments are gathered. */

#include "datapath/hook.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include <rte_eal.h>
#include <rte_mbuf.h>
#include <rte_vhost.h>

#include "datapath/engine.h"
#include "datapath/parse.h"
#include "datapath/slot.h"
#include "tests/lib/blob.h"

#define N_MBUFS 511
#define FRAME 60
#define VID_OPEN 3    /* its slot lets UDP port 53 pass */
#define VID_BLOCKED 4 /* a port without a slot */
#define VID_UNKNOWN 7

static struct rte_mempool *pool;
static struct moat_engine *engine;
static const char *names[MOAT_MAX_VIDS];
static struct rte_mbuf *from_vm[64];
static uint16_t n_from_vm, room, n_taken, n_polls, n_sends;
static struct rte_mbuf *taken[64];

/* In place of the vhost library's. */
int rte_vhost_get_ifname(int vid, char *buf, size_t len)
{
    if (!names[vid])
        return -1;
    snprintf(buf, len, "%s", names[vid]);
    return 0;
}

static uint16_t vhost_dequeue(int vid, uint16_t queue, struct rte_mempool *mp,
                              struct rte_mbuf **pkts, uint16_t n)
{
    uint16_t k = n < n_from_vm ? n : n_from_vm;

    (void)vid;
    (void)queue;
    (void)mp;
    n_polls++;
    memcpy(pkts, from_vm, k * sizeof *pkts);
    n_from_vm = 0;
    return k;
}

static uint16_t vhost_enqueue(int vid, uint16_t queue, struct rte_mbuf **pkts, uint16_t n)
{
    uint16_t k = n < room ? n : room;

    (void)vid;
    (void)queue;
    n_sends++;
    memcpy(taken + n_taken, pkts, k * sizeof *pkts);
    n_taken += k;
    room -= k;
    return k;
}

/* 10.0.0.1 -> 10.0.0.2, UDP, or the other way round. */
static struct rte_mbuf *packet(uint16_t dport, bool to_vm)
{
    struct rte_mbuf *m = rte_pktmbuf_alloc(pool);
    uint8_t *p;

    ck_assert_ptr_nonnull(m);
    p = (uint8_t *)rte_pktmbuf_append(m, FRAME);
    ck_assert_ptr_nonnull(p);
    memset(p, 0, FRAME);
    p[0] = p[6] = 2;
    p[5] = to_vm ? 1 : 2;
    p[11] = to_vm ? 2 : 1;
    p[12] = 8;
    memcpy(p + 14, "\x45\0\0\x2e\0\0\0\0\x40\x11\0\0\x0a\0\0\1\x0a\0\0\2", 20);
    if (to_vm) {
        p[29] = 2;
        p[33] = 1;
    }
    p[34] = 0x10; /* source port 4096 + */
    p[36] = (uint8_t)(dport >> 8);
    p[37] = (uint8_t)dport;
    p[39] = 26; /* length */
    return m;
}

/* The same bytes in segments of at most `size`. */
static struct rte_mbuf *cut(struct rte_mbuf *m, uint16_t size)
{
    struct rte_mbuf *head = NULL;

    for (uint16_t off = 0, n; off < FRAME; off += n) {
        struct rte_mbuf *s = rte_pktmbuf_alloc(pool);
        char *data;

        n = RTE_MIN(size, (uint16_t)(FRAME - off));
        ck_assert_ptr_nonnull(s);
        data = rte_pktmbuf_append(s, n);
        ck_assert_ptr_nonnull(data);
        memcpy(data, rte_pktmbuf_mtod_offset(m, char *, off), n);
        if (head)
            ck_assert_int_eq(rte_pktmbuf_chain(head, s), 0);
        else
            head = s;
    }
    rte_pktmbuf_free(m);
    return head;
}

static void claim_open(enum moat_slot_state state)
{
    struct moat_slot_conf c = {.vnic = "v",
                               .path = "/open",
                               .mac = {2, 0, 0, 0, 0, 1},
                               .n_addrs = 1,
                               .state = (uint8_t)state,
                               .addrs = {{.family = 4, .plen = 32, .addr = {10, 0, 0, 1}}}};
    struct blob *b = blob_create();
    struct moat_rule *r = blob_rule(b, MOAT_ALLOW, "dns");
    char err[256] = "";
    size_t len;
    uint8_t *blob;

    r->proto = 17;
    r->dport_lo = r->dport_hi = 53;
    blob = blob_emit(b, &len);
    moat_settings_init(&c.settings);
    ck_assert_msg(!moat_slot_claim(engine, &c, err, sizeof err), "%s", err);
    ck_assert_msg(!moat_slot_publish(engine, "v", blob, len, err, sizeof err), "%s", err);
    free(blob);
    blob_destroy(b);
}

static void setup(void)
{
    static const struct moat_switch sw = {MOAT_ENGINE_ABI, sizeof sw, vhost_dequeue, vhost_enqueue};
    struct moat_engine_conf conf = {.n_slots = 4, .n_sessions = 1024};
    char *args[] = {(char *)"test",
                    (char *)"--no-huge",
                    (char *)"--no-pci",
                    (char *)"--no-shconf",
                    (char *)"--no-telemetry",
                    (char *)"-m",
                    (char *)"64",
                    (char *)"--log-level=4",
                    (char *)"-l",
                    (char *)"0"};
    char err[256] = "";

    ck_assert_int_ge(rte_eal_init(10, args), 0);
    pool = rte_pktmbuf_pool_create("test", N_MBUFS, 0, 0, 2048, SOCKET_ID_ANY);
    ck_assert_ptr_nonnull(pool);
    engine = moat_engine_create(&conf, err, sizeof err);
    ck_assert_msg(engine != NULL, "%s", err);
    ck_assert_msg(!hook_init(engine, &sw, err, sizeof err), "%s", err);
    ck_assert_int_eq(hook_port_register("/open"), 0);
    ck_assert_int_eq(hook_port_register("/blocked"), 0);
    names[VID_OPEN] = "/open";
    names[VID_BLOCKED] = "/blocked";
    claim_open(MOAT_SLOT_ACTIVE);
    for (int vid = VID_OPEN; vid <= VID_BLOCKED; vid++) {
        hook_connected(vid);
        hook_started(vid);
    }
}

static unsigned in_use(void)
{
    return rte_mempool_in_use_count(pool);
}

static uint16_t dequeue(int vid, struct rte_mbuf **out)
{
    return hook_dequeue(vid, 1, pool, out, 64);
}

START_TEST(refused_ones_are_freed_and_the_rest_keep_their_order)
{
    struct rte_mbuf *out[64], *good[64];
    uint16_t n_good = 0;

    for (n_from_vm = 0; n_from_vm < 64; n_from_vm++) {
        from_vm[n_from_vm] = packet(n_from_vm % 3 ? 53 : 54, false);
        if (n_from_vm % 3)
            good[n_good++] = from_vm[n_from_vm];
    }
    ck_assert_uint_eq(dequeue(VID_OPEN, out), n_good);
    ck_assert_mem_eq(out, good, n_good * sizeof *out);
    ck_assert_uint_eq(in_use(), n_good);
    rte_pktmbuf_free_bulk(out, n_good);
}
END_TEST

START_TEST(ports_that_are_not_open)
{
    static const int vids[] = {VID_BLOCKED, VID_UNKNOWN, -1, MOAT_MAX_VIDS, INT32_MAX};
    struct rte_mbuf *out[64], *one;

    for (unsigned i = 0; i < 5; i++) {
        from_vm[0] = packet(53, false);
        n_from_vm = 1;
        ck_assert_uint_eq(dequeue(vids[i], out), 0);
        ck_assert_uint_eq(in_use(), 0);
        one = packet(53, true);
        room = 64;
        ck_assert_uint_eq(hook_enqueue(vids[i], 0, &one, 1), 1); /* dealt with, not sent */
        ck_assert_uint_eq(n_sends, 0);
        rte_pktmbuf_free(one);
    }
}
END_TEST

START_TEST(a_vid_changes_hands)
{
    struct rte_mbuf *out[64];

    hook_stopped(VID_OPEN);
    hook_disconnected(VID_OPEN);
    names[VID_OPEN] = "/blocked";
    hook_connected(VID_OPEN);
    from_vm[0] = packet(53, false);
    n_from_vm = 1;
    ck_assert_uint_eq(dequeue(VID_OPEN, out), 0);

    names[VID_OPEN] = "/open"; /* plugged again without a word: blocked until claimed */
    hook_connected(VID_OPEN);
    ck_assert_int_eq(hook_port_register("/open"), 0);
    hook_connected(VID_OPEN);
    hook_started(VID_OPEN);
    from_vm[0] = packet(53, false);
    n_from_vm = 1;
    ck_assert_uint_eq(dequeue(VID_OPEN, out), 0);
    ck_assert_uint_eq(in_use(), 0);
}
END_TEST

START_TEST(held_packets_stay_in_the_ring)
{
    struct rte_mbuf *out[64];
    struct moat_ctl_state arriving = {.vnic = "v", .state = MOAT_SLOT_ARRIVING};
    char err[256];

    ck_assert_int_eq(moat_slot_set_state(engine, &arriving, err, sizeof err), 0);
    n_polls = 0;
    ck_assert_uint_eq(dequeue(VID_OPEN, out), 0);
    ck_assert_uint_eq(n_polls, 0);
}
END_TEST

START_TEST(segments_are_gathered)
{
    struct rte_mbuf *out[64];

    for (uint16_t size = 1; size <= FRAME; size += 7) {
        from_vm[0] = cut(packet(53, false), size);
        from_vm[1] = cut(packet(54, false), size);
        n_from_vm = 2;
        ck_assert_uint_eq(dequeue(VID_OPEN, out), 1);
        ck_assert_ptr_eq(out[0], from_vm[0]);
        rte_pktmbuf_free(out[0]);
        ck_assert_uint_eq(in_use(), 0);
    }
}
END_TEST

/* A ring that takes two at a time, under the switch's loop. */
START_TEST(what_the_ring_does_not_take_comes_again)
{
    struct rte_mbuf *pkts[40], **p = pkts;
    uint16_t left = 40, done, good = 0;
    uint64_t counters[MOAT_N_COUNTERS];
    unsigned calls = 0;

    for (unsigned i = 0; i < 40; i++) {
        pkts[i] = packet(i % 2 ? 53 : 54, true);
        good += i % 2;
    }
    do {
        room = 2;
        done = hook_enqueue(VID_OPEN, 0, p, left);
        ck_assert_uint_gt(done, 0);
        left -= done;
        p += done;
        calls++;
    } while (left);
    ck_assert_uint_eq(n_taken, good);
    for (unsigned i = 0; i < good; i++)
        ck_assert_ptr_eq(taken[i], pkts[2 * i + 1]);
    ck_assert_uint_eq(calls, 10);
    moat_engine_counters(engine, 0, counters);
    ck_assert_uint_eq(counters[MOAT_C_TO_VM_PKTS], good);
    ck_assert_uint_eq(counters[MOAT_C_DROP(MOAT_TO_VM, MOAT_R_DEFAULT)], 40 - good);
    rte_pktmbuf_free_bulk(pkts, 40); /* the caller's, all of them */
    ck_assert_uint_eq(in_use(), 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("hook");
    TCase *t = tcase_create("bursts");
    SRunner *r;
    int failed;

    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup, NULL); /* a process each: EAL starts once */
    tcase_add_test(t, refused_ones_are_freed_and_the_rest_keep_their_order);
    tcase_add_test(t, ports_that_are_not_open);
    tcase_add_test(t, a_vid_changes_hands);
    tcase_add_test(t, held_packets_stay_in_the_ring);
    tcase_add_test(t, segments_are_gathered);
    tcase_add_test(t, what_the_ring_does_not_take_comes_again);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
