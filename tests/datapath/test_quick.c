/* SPDX-License-Identifier: Apache-2.0 */

/* The straight line against the long way: whenever moat_quick() takes a frame, parse and
 * guard must find nothing wrong with it and make the same key, hash and segment. */

#include "datapath/quick.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "datapath/guard.h"
#include "datapath/session_private.h"
#include "tests/lib/packet.h"
#include "tests/lib/rig.h"
#include "tests/lib/trials.h"

#define MUTANTS TRIALS(1000000)

static struct rig r;
static const struct moat_view *view;
static unsigned taken[2], syns[2];

/* What the pipe does with a frame: false if it takes the long way. */
static bool take(struct moat_pkt *p, enum moat_dir dir, bool syn, struct moat_key *k,
                 uint64_t *hash)
{
    struct moat_quick q;
    __m128i rest;

    moat_quick_begin(&q, view, dir);
    if (!q.any || (dir == MOAT_FROM_VM ? !moat_quick(&q, p, MOAT_FROM_VM, syn, &rest)
                                       : !moat_quick(&q, p, MOAT_TO_VM, syn, &rest)))
        return false;
    p->quick = true;
    k->tag = view->tag;
    _mm_storeu_si128((__m128i *)(void *)&k->local, rest);
    *hash = moat_quick_hash(&r.e->sessions->seed, rest, k->proto);
    moat_quick_fill(p);
    moat_quick_options(p);
    return true;
}

static void compare(const struct frame *f, uint32_t len, uint32_t total, enum moat_dir dir,
                    bool syn)
{
    struct moat_pkt quick = {.data = f->data, .len = len, .total = total};
    struct moat_pkt slow = quick;
    struct moat_key qk, sk;
    uint64_t hash;

    if (!take(&quick, dir, syn, &qk, &hash))
        return;
    taken[dir]++;
    if (quick.kind == MOAT_PKT_TCP && quick.tcp.flags & MOAT_TCP_SYN) {
        ck_assert(syn);
        syns[dir]++;
    }
    moat_parse(&slow);
    ck_assert_int_eq(slow.reason, MOAT_R_NONE);
    ck_assert_int_eq(slow.kind, quick.kind);
    ck_assert(slow.kind == MOAT_PKT_TCP || slow.kind == MOAT_PKT_UDP);
    ck_assert_int_eq(slow.cast, MOAT_UNICAST);
    ck_assert(!slow.ip_multicast && !slow.n_tags && !slow.vlan && !slow.frag);
    if (dir == MOAT_FROM_VM)
        ck_assert_int_eq(moat_guard_from_vm(view, &slow), MOAT_R_NONE);
    ck_assert_uint_eq(moat_session_key(r.e->sessions, &slow, dir, view->tag, &sk), hash);
    ck_assert_mem_eq(&qk, &sk, sizeof qk);
    ck_assert_ptr_eq(quick.src, slow.src);
    ck_assert_ptr_eq(quick.dst, slow.dst);
    if (slow.kind == MOAT_PKT_TCP) {
        ck_assert_uint_eq(quick.tcp.seq, slow.tcp.seq);
        ck_assert_uint_eq(quick.tcp.ack, slow.tcp.ack);
        ck_assert_uint_eq(quick.tcp.len, slow.tcp.len);
        ck_assert_uint_eq(quick.tcp.win, slow.tcp.win);
        ck_assert_uint_eq(quick.tcp.flags, slow.tcp.flags);
        ck_assert_uint_eq(quick.tcp.wscale, slow.tcp.wscale);
    }
}

static void make(struct frame *f, unsigned kind)
{
    /* MSS, no operation, window scale, end. */
    static const uint8_t options[] = {2, 4, 5, 0xb4, 1, 3, 3, 7, 0};

    frame_eth(f, rig_mac[1], rig_mac[0]);
    frame_ip4(f, rig_ip4[0], rig_ip4[1], kind % 3 ? 6 : 17);
    if (kind % 3)
        frame_tcp(f, 4000, 80, 1000, 2000,
                  kind == 4 ? MOAT_TCP_SYN : MOAT_TCP_ACK | (kind == 2 ? MOAT_TCP_PSH : 0), 512);
    else
        frame_udp(f, 4000, kind ? 67 : 53); /* the guard looks into what goes to a DHCP port */
    if (kind == 2 || kind == 4) {           /* options */
        frame_data(f, 12);
        f->data[f->l4_off + 12] = 8 << 4;
    }
    if (kind == 4)
        memcpy(f->data + f->l4_off + 20, options, sizeof options);
    frame_data(f, 30);
    frame_end(f);
}

/* Interesting bytes: the headers, and values that stand at an edge. */
static void mutate(struct frame *f)
{
    static const uint8_t edges[] = {0,    1,    4,    5,    6,    8,    0x10, 0x11, 0x12, 0x14,
                                    0x20, 0x40, 0x45, 0x46, 0x50, 0x80, 0xdf, 0xe0, 0xff};
    unsigned at = (unsigned)random() % 64;

    if (random() % 2)
        f->data[at] = edges[(unsigned)random() % sizeof edges];
    else
        f->data[at] ^= (uint8_t)(1u << random() % 8);
}

START_TEST(says_yes_only_where_the_long_way_does)
{
    rig_start(&r, NULL, "policy \"t\" version 1\ntier main { allow from any to any }\n");
    view = r.e->slots[0].view;
    srandom(5);
    for (unsigned i = 0; i < MUTANTS; i++) {
        struct frame f;
        uint32_t len, total;

        make(&f, i / 2 % 5);
        for (unsigned n = (unsigned)random() % 3; n; n--)
            mutate(&f);
        total = random() % 4 ? f.len : (uint32_t)random() % (f.len + 1);
        len = random() % 8 ? total : (uint32_t)random() % (total + 1);
        compare(&f, len, total, i & 1 ? MOAT_FROM_VM : MOAT_TO_VM, random() % 2);
    }
    /* It is worth having. */
    ck_assert_uint_gt(taken[0], MUTANTS / 10);
    ck_assert_uint_gt(taken[1], MUTANTS / 10);
    ck_assert_uint_gt(syns[0], MUTANTS / 50);
    ck_assert_uint_gt(syns[1], MUTANTS / 50);
    rig_destroy(&r);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("quick");
    TCase *tc = tcase_create("twin");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, says_yes_only_where_the_long_way_does);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
