/* SPDX-License-Identifier: Apache-2.0 */

/* The session table against a plain list: the same random inserts, look-ups, expiries and
 * recoveries must give the same answers. */

#include "datapath/session.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "datapath/engine.h"
#include "datapath/mapping.h"
#include "datapath/session_private.h"

#define N_SESSIONS 4096
#define N_TUPLES 3000

static uint64_t clock_ms;

static uint64_t now_ms(void)
{
    return clock_ms;
}

static struct moat_engine *new_engine(const char *mapping, uint32_t n_sessions)
{
    static const uint64_t seed[4] = {1, 2, 3, 4};
    struct moat_engine_conf conf = {
        .mapping = mapping, .n_slots = 4, .n_sessions = n_sessions, .now_ms = now_ms, .seed = seed};
    char err[256];
    struct moat_engine *e = moat_engine_create(&conf, err, sizeof err);

    ck_assert_msg(e != NULL, "%s", err);
    return e;
}

/* Tuple number t: half IPv4, half IPv6, few addresses so that hashes meet. */
struct tuple {
    struct moat_pkt pkt;
    uint8_t src[16], dst[16];
};

static void make_tuple(uint32_t t, struct tuple *out)
{
    memset(out, 0, sizeof *out);
    out->pkt.family = t & 1 ? MOAT_FAM_IP6 : MOAT_FAM_IP4;
    out->pkt.proto = t & 2 ? 17 : 6;
    out->pkt.kind = t & 2 ? MOAT_PKT_UDP : MOAT_PKT_TCP;
    out->pkt.sport = (uint16_t)(1000 + t / 16);
    out->pkt.dport = (uint16_t)(t & 4 ? 80 : 443);
    out->src[0] = 10;
    out->src[15] = out->src[3] = (uint8_t)(t & 8 ? 1 : 2);
    out->dst[0] = 10;
    out->dst[3] = out->dst[14] = 9;
    out->pkt.src = out->src;
    out->pkt.dst = out->dst;
}

static uint32_t find(struct moat_engine *e, const struct tuple *t, enum moat_dir dir, uint32_t tag)
{
    const struct moat_pkt *p = &t->pkt;
    struct moat_key key;
    uint32_t out;
    uint64_t hash = moat_session_key(e->sessions, p, dir, tag, &key);

    moat_session_prefetch(e->sessions, hash);
    moat_session_lookup_bulk(e->sessions, &key, &hash, &p, dir, 1, &out);
    ck_assert_uint_eq(out, moat_session_lookup(e->sessions, &key, hash, p, dir));
    return out;
}

static uint32_t insert(struct moat_engine *e, const struct tuple *t, uint32_t tag, bool *found,
                       enum moat_reason *reason)
{
    struct moat_session_whole s;
    uint64_t hash;

    memset(&s, 0, sizeof s);
    hash = moat_session_key(e->sessions, &t->pkt, MOAT_FROM_VM, tag, &s.s.key);
    s.s.seen = s.created = (uint32_t)(clock_ms / 1000);
    s.s.side[0].state = 1;
    if (t->pkt.family == MOAT_FAM_IP6) {
        memcpy(s.local6, t->src, 16);
        memcpy(s.remote6, t->dst, 16);
    }
    return moat_session_insert(e->sessions, moat_thread_self(e), hash, &s, found, reason);
}

/* The same connection from the other end: addresses and ports swapped. */
static void reverse(const struct tuple *t, struct tuple *r)
{
    *r = *t;
    memcpy(r->src, t->dst, 16);
    memcpy(r->dst, t->src, 16);
    r->pkt.src = r->src;
    r->pkt.dst = r->dst;
    r->pkt.sport = t->pkt.dport;
    r->pkt.dport = t->pkt.sport;
}

START_TEST(finds_both_directions_and_keeps_slots_apart)
{
    struct moat_engine *e = new_engine(NULL, N_SESSIONS);
    enum moat_reason reason;
    bool found;

    for (uint32_t i = 0; i < 64; i++) {
        struct tuple t, r;
        uint32_t a;

        make_tuple(i, &t);
        reverse(&t, &r);
        a = insert(e, &t, 1 | 1 << 12, &found, &reason);
        ck_assert_uint_ne(a, MOAT_NO_SESSION);
        ck_assert(!found);
        ck_assert_uint_eq(find(e, &t, MOAT_FROM_VM, 1 | 1 << 12), a);
        ck_assert_uint_eq(find(e, &r, MOAT_TO_VM, 1 | 1 << 12), a);
        ck_assert_uint_eq(find(e, &r, MOAT_FROM_VM, 1 | 1 << 12), MOAT_NO_SESSION);
        ck_assert_uint_eq(find(e, &t, MOAT_FROM_VM, 2 | 1 << 12), MOAT_NO_SESSION);
        ck_assert_uint_eq(find(e, &t, MOAT_FROM_VM, 1 | 2 << 12), MOAT_NO_SESSION);
        ck_assert_uint_eq(insert(e, &t, 1 | 1 << 12, &found, &reason), a);
        ck_assert(found);
    }
    moat_engine_destroy(e);
}
END_TEST

static bool always(void *aux, const struct moat_session *s)
{
    (void)aux;
    (void)s;
    return true;
}

/* The twin: for each (tuple, slot) the index, or none. */
START_TEST(agrees_with_a_plain_list)
{
    static uint32_t list[N_TUPLES][3];
    struct moat_engine *e = new_engine(NULL, N_SESSIONS);
    uint32_t live = 0;

    srandom(7);
    memset(list, 0xff, sizeof list);
    for (int step = 0; step < 400000; step++) {
        uint32_t t = (uint32_t)random() % N_TUPLES, slot = (uint32_t)random() % 3;
        uint32_t *twin = &list[t][slot];
        struct tuple tuple;
        enum moat_reason reason;
        bool found;

        make_tuple(t, &tuple);
        ck_assert_uint_eq(find(e, &tuple, MOAT_FROM_VM, slot + 1), *twin);
        if (*twin == MOAT_NO_SESSION && live < N_SESSIONS * 3 / 4) {
            *twin = insert(e, &tuple, slot + 1, &found, &reason);
            ck_assert_msg(*twin != MOAT_NO_SESSION, "step %d, %u live, reason %d", step, live,
                          reason);
            ck_assert(!found);
            live++;
        } else if (*twin != MOAT_NO_SESSION && random() % 2) {
            ck_assert(moat_session_remove_if(e->sessions, *twin, always, NULL));
            *twin = MOAT_NO_SESSION;
            live--;
            moat_session_reclaim(e->sessions, &e->qsbr);
        }
    }
    moat_session_reclaim(e->sessions, &e->qsbr);
    moat_session_reclaim(e->sessions, &e->qsbr);
    moat_session_thread_flush(e->sessions, moat_thread_self(e));
    ck_assert_uint_eq(moat_session_table_used(e->sessions), live);
    ck_assert_uint_eq(moat_session_table_recover(e->sessions, always, NULL), live);
    for (uint32_t t = 0; t < N_TUPLES; t++)
        for (uint32_t slot = 0; slot < 3; slot++) {
            struct tuple tuple;

            make_tuple(t, &tuple);
            ck_assert_uint_eq(find(e, &tuple, MOAT_FROM_VM, slot + 1), list[t][slot]);
        }
    moat_engine_destroy(e);
}
END_TEST

START_TEST(a_full_table_refuses_and_says_so)
{
    struct moat_engine *e = new_engine(NULL, 64);
    enum moat_reason reason = MOAT_R_NONE;
    uint32_t taken = 0;
    bool found;

    for (uint32_t t = 0; t < 200; t++) {
        struct tuple tuple;

        make_tuple(t, &tuple);
        if (insert(e, &tuple, 1, &found, &reason) != MOAT_NO_SESSION)
            taken++;
    }
    ck_assert_uint_eq(reason, MOAT_R_TABLE_FULL);
    ck_assert_uint_gt(taken, 32);
    ck_assert_uint_le(taken, 64);
    moat_engine_destroy(e);
}
END_TEST

/* Nothing that a reader may still hold is used again. */
START_TEST(removed_entries_wait_for_readers)
{
    struct moat_engine *e = new_engine(NULL, 64);
    struct moat_qsbr_reader *reader = moat_qsbr_attach(&e->qsbr);
    enum moat_reason reason;
    struct tuple tuple;
    uint32_t index, used;
    bool found;

    make_tuple(0, &tuple);
    index = insert(e, &tuple, 1, &found, &reason);
    moat_qsbr_enter(&e->qsbr, reader);
    ck_assert(moat_session_remove_if(e->sessions, index, always, NULL));
    used = moat_session_table_used(e->sessions);
    for (int i = 0; i < 10; i++)
        moat_session_reclaim(e->sessions, &e->qsbr);
    ck_assert_uint_eq(moat_session_table_used(e->sessions), used);
    moat_qsbr_leave(reader);
    moat_session_reclaim(e->sessions, &e->qsbr);
    ck_assert_uint_eq(moat_session_table_used(e->sessions), used - 1);
    moat_engine_destroy(e);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("session");
    TCase *tc = tcase_create("table");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, finds_both_directions_and_keeps_slots_apart);
    tcase_add_test(tc, agrees_with_a_plain_list);
    tcase_add_test(tc, a_full_table_refuses_and_says_so);
    tcase_add_test(tc, removed_entries_wait_for_readers);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
