/* SPDX-License-Identifier: Apache-2.0 */

/* What the table promises: it holds as many sessions as it says, of each family, at the memory
 * that it says; its small counters add up; another table over the same mapping takes over. */

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "datapath/engine.h"
#include "datapath/mapping.h"
#include "datapath/session_private.h"

static struct moat_mapping *map;
static struct moat_session_table *table;
static struct moat_thread thread;

static bool always(void *aux, const struct moat_session *s)
{
    (void)aux;
    (void)s;
    return true;
}

static void open_table(uint32_t n, uint32_t n6)
{
    char err[256] = "";

    map = moat_mapping_open(NULL, 1, n, n6, (uint64_t[]){1, 2, 3, 4}, err, sizeof err);
    ck_assert_msg(map != NULL, "%s", err);
    table = moat_session_table_create(map);
    ck_assert_ptr_nonnull(table);
    ck_assert_uint_eq(moat_session_table_recover(table, always, NULL), 0);
    memset(&thread, 0, sizeof thread);
}

static void close_table(void)
{
    moat_session_table_destroy(table);
    moat_mapping_close(map);
}

/* Session i: two of one connection, as the two slots of a host have them. */
static uint64_t make(uint32_t i, uint8_t family, struct moat_session_whole *w)
{
    uint32_t c = i / 2, near = 0x0100000a, far = 0x0200000a + (c >> 16);
    uint8_t a[16] = {0x20, 1, 0xd, 0xb8, [15] = 1}, b[16] = {0x20, 1, 0xd, 0xb8};
    struct moat_pkt p = {.family = family, .proto = 17, .kind = MOAT_PKT_UDP};

    memcpy(b + 8, &far, sizeof far);
    p.sport = (uint16_t)(c >> 8);
    p.dport = (uint16_t)(c & 255);
    if (family == MOAT_FAM_IP4) {
        memcpy(a, &near, 4);
        memcpy(b, &far, 4);
    }
    p.src = a;
    p.dst = b;
    memset(w, 0, sizeof *w);
    w->s.side[0].state = 1;
    if (family == MOAT_FAM_IP6) {
        memcpy(i & 1 ? w->remote6 : w->local6, a, 16);
        memcpy(i & 1 ? w->local6 : w->remote6, b, 16);
    }
    return moat_session_key(table, &p, i & 1 ? MOAT_TO_VM : MOAT_FROM_VM, 1 + (i & 1), &w->s.key);
}

static uint32_t insert(uint32_t i, uint8_t family)
{
    struct moat_session_whole w;
    uint64_t hash = make(i, family, &w);
    enum moat_reason reason;
    bool found;
    uint32_t at = moat_session_insert(table, &thread, hash, &w, &found, &reason);

    ck_assert(at == MOAT_NO_SESSION || !found);
    return at;
}

static uint32_t find(uint32_t i, uint8_t family)
{
    struct moat_session_whole w;
    uint64_t hash = make(i, family, &w);
    struct moat_pkt p = {.src = w.local6, .dst = w.remote6};

    return moat_session_lookup(table, &w.s.key, hash, &p, MOAT_FROM_VM);
}

/* Sessions of one family until there is no room. */
static uint32_t fill(uint32_t from, uint8_t family)
{
    uint32_t i = from;

    while (insert(i, family) != MOAT_NO_SESSION)
        i++;
    return i - from;
}

/* Each bucket says how many of its own are in another one: what makes a look-up go there. */
static void check_away(void)
{
    uint16_t *away = calloc(table->n_buckets, sizeof *away);

    ck_assert_ptr_nonnull(away);
    for (uint32_t i = 0; i < table->n_sessions; i++) {
        const struct moat_key *k = &table->sessions[i].key;
        uint32_t at;
        bool here = false;

        if (!k->tag)
            continue;
        at = moat_session_bucket(table, moat_session_hash(table, k));
        for (unsigned w = 0; w < MOAT_BUCKET_WAYS; w++)
            here |= table->buckets[at].tag[w] && table->buckets[at].index[w] == i;
        away[at] = (uint16_t)(away[at] + !here);
    }
    for (uint32_t b = 0; b < table->n_buckets; b++) {
        ck_assert_uint_eq(table->buckets[b].away, away[b]);
        ck_assert_uint_eq(table->buckets[b].lock, 0);
    }
    free(away);
}

/* --- capacity --- */

static const struct {
    uint32_t n, n6;
} sizes[] = {{64, 32}, {65, 1}, {1000, 500}, {4096, 0}, {100003, 50000}, {300000, 75000}};

START_TEST(ipv4_fills_the_whole_table)
{
    uint32_t n = sizes[_i].n;

    open_table(n, sizes[_i].n6);
    ck_assert_uint_eq(fill(0, MOAT_FAM_IP4), n);
    ck_assert_uint_eq(moat_session_table_used(table), n);
    for (uint32_t i = 0; i < n; i++)
        ck_assert_uint_ne(find(i, MOAT_FAM_IP4), MOAT_NO_SESSION);
    check_away();
    ck_assert_uint_eq(moat_session_table_recover(table, always, NULL), n);
    for (uint32_t i = 0; i < n; i++)
        ck_assert_uint_ne(find(i, MOAT_FAM_IP4), MOAT_NO_SESSION);
    check_away();
    close_table();
}
END_TEST

START_TEST(ipv6_fills_its_share)
{
    uint32_t n = sizes[_i].n, n6 = sizes[_i].n6;

    open_table(n, n6);
    ck_assert_uint_eq(fill(0, MOAT_FAM_IP6), n6);
    ck_assert_uint_eq(fill(0, MOAT_FAM_IP4), n - n6);
    for (uint32_t i = 0; i < n6; i++)
        ck_assert_uint_ne(find(i, MOAT_FAM_IP6), MOAT_NO_SESSION);
    close_table();
}
END_TEST

/* Full, and sessions come and go: one that goes makes room for another one. */
START_TEST(a_full_table_lives)
{
    enum { N = 20000 };
    static uint32_t who[N];
    struct moat_qsbr *q = aligned_alloc(64, sizeof *q);

    ck_assert_ptr_nonnull(q);
    moat_qsbr_init(q);
    open_table(N, 0);
    for (uint32_t i = 0; i < N; i++) {
        who[i] = i;
        ck_assert_uint_ne(insert(i, MOAT_FAM_IP4), MOAT_NO_SESSION);
    }
    srandom(3);
    for (uint32_t next = N; next < 10 * N; next++) {
        uint32_t *w = &who[(uint32_t)random() % N];

        ck_assert(moat_session_remove_if(table, find(*w, MOAT_FAM_IP4), always, NULL));
        ck_assert_uint_eq(find(*w, MOAT_FAM_IP4), MOAT_NO_SESSION);
        moat_session_reclaim(table, q);
        moat_session_reclaim(table, q);
        *w = next;
        ck_assert_uint_ne(insert(next, MOAT_FAM_IP4), MOAT_NO_SESSION);
    }
    for (uint32_t i = 0; i < N; i++)
        ck_assert_uint_ne(find(who[i], MOAT_FAM_IP4), MOAT_NO_SESSION);
    check_away();
    for (uint32_t i = 0; i < N; i++) {
        ck_assert(moat_session_remove_if(table, find(who[i], MOAT_FAM_IP4), always, NULL));
        moat_session_reclaim(table, q);
        moat_session_reclaim(table, q);
    }
    check_away();
    close_table();
    free(q);
}
END_TEST

/* What waits for readers is bounded; what is over then stays for the next turn. */
START_TEST(removal_waits_when_too_many_wait)
{
    struct moat_qsbr *q = aligned_alloc(64, sizeof *q);
    uint32_t gone = 0;

    ck_assert_ptr_nonnull(q);
    moat_qsbr_init(q);
    open_table(1600, 0);
    ck_assert_uint_eq(fill(0, MOAT_FAM_IP4), 1600);
    for (unsigned turn = 0; turn < 40; turn++) {
        for (uint32_t i = 0; i < 1600; i++)
            gone += moat_session_remove_if(table, i, always, NULL);
        if (!turn)
            ck_assert_uint_eq(gone, table->max_limbo);
        moat_session_reclaim(table, q);
    }
    ck_assert_uint_eq(gone, 1600);
    moat_session_reclaim(table, q);
    moat_session_reclaim(table, q);
    ck_assert_uint_eq(moat_session_table_used(table), 0);
    close_table();
    free(q);
}
END_TEST

START_TEST(memory_of_a_session)
{
    open_table(262144, 131072);
    ck_assert(moat_session_table_bytes(table, MOAT_FAM_IP4) <= 96);
    ck_assert(moat_session_table_bytes(table, MOAT_FAM_IP6) <= 128);
    /* The mapping has it so, too: 16 MiB are its rulesets and its rounding at most. */
    ck_assert_uint_le(map->head->size - map->head->sessions_off,
                      262144 * 96ull + 131072 * 32ull + (2u << 20));
    close_table();
}
END_TEST

/* --- counters --- */

static void account(struct moat_session *s, enum moat_dir d, uint32_t total)
{
    uint32_t all = (1u << MOAT_TALLY_BYTE_BITS) - 1;
    uint32_t tally = s->tally[d] + 1 + ((total & all) << MOAT_TALLY_BYTES);

    if (tally & MOAT_TALLY_CARRY || total > all)
        moat_session_carry(table, s, d, tally, total >> MOAT_TALLY_BYTE_BITS);
    else
        s->tally[d] = tally;
}

START_TEST(counters_add_up)
{
    static const uint32_t sizes_of[] = {0, 1, 60, 1514, 65549, 4194303, 4194304, UINT32_MAX};
    uint64_t packets[2] = {0, 0}, bytes[2] = {0, 0};
    struct moat_session *s;

    open_table(64, 0);
    s = moat_session_at(table, insert(0, MOAT_FAM_IP4));
    srandom(9);
    for (unsigned i = 0; i < 1000000; i++) {
        uint32_t r = (uint32_t)random(), total = sizes_of[r % (i % 16 ? 5 : 8)];
        enum moat_dir d = r >> 20 & 1 ? MOAT_TO_VM : MOAT_FROM_VM;
        uint64_t have_packets, have_bytes;

        account(s, d, total);
        packets[d]++;
        bytes[d] += total;
        moat_session_counts(table, s, d, &have_packets, &have_bytes);
        ck_assert_uint_eq(have_packets, packets[d]);
        ck_assert_uint_eq(have_bytes, bytes[d] & ((1ull << 54) - 1));
    }
    close_table();
}
END_TEST

/* Near the ends of each part: stored, read back, and one packet more. */
START_TEST(large_counters_survive)
{
    static const uint64_t at[] = {0,          255,        256,         65535,      65536,
                                  (1u << 24), UINT32_MAX, 0xffffff00u, 4294967040u};

    open_table(64, 0);
    for (unsigned i = 0; i < sizeof at / sizeof *at; i++)
        for (unsigned shift = 0; shift < 22; shift++) {
            struct moat_session_whole w, r;
            struct moat_session *s;
            uint64_t packets, bytes;

            make(0, MOAT_FAM_IP4, &w);
            s = moat_session_at(table,
                                i || shift ? find(0, MOAT_FAM_IP4) : insert(0, MOAT_FAM_IP4));
            w.packets[0] = at[i];
            w.bytes[1] = at[i] << shift;
            moat_session_renew(table, s, &w);
            moat_session_read(table, s, &r);
            ck_assert_uint_eq(r.packets[0], at[i]);
            ck_assert_uint_eq(r.bytes[1], at[i] << shift);
            ck_assert_uint_eq(r.packets[1] + r.bytes[0], 0);
            account(s, MOAT_FROM_VM, 1);
            account(s, MOAT_TO_VM, 1);
            moat_session_counts(table, s, MOAT_FROM_VM, &packets, &bytes);
            ck_assert_uint_eq(packets, (uint32_t)(at[i] + 1));
            moat_session_counts(table, s, MOAT_TO_VM, &packets, &bytes);
            ck_assert_uint_eq(bytes, (at[i] << shift) + 1);
        }
    close_table();
}
END_TEST

/* --- generations --- */

START_TEST(generations_are_kept_whole)
{
    open_table(1024, 0);
    for (uint32_t i = 0; i < 200; i++) {
        uint64_t generation =
            (uint64_t)(i % 16) << 60 | 0x100000000u * (i % 16) | (0xfffffff0u + i);
        struct moat_session_whole w, r;
        uint64_t hash = make(i, MOAT_FAM_IP4, &w);
        struct moat_session *s;
        enum moat_reason reason;
        bool found;

        w.generation = generation;
        w.s.marks = i & 1 ? MOAT_SES_MARK_TO_VM | MOAT_SES_MARK_ERROR : 0;
        s = moat_session_at(table, moat_session_insert(table, &thread, hash, &w, &found, &reason));
        ck_assert_uint_eq(moat_session_generation(table, s), generation);
        moat_session_admitted(table, s, 5, ~0ull << 36, 7);
        moat_session_read(table, s, &r);
        ck_assert_uint_eq(r.rule, 5);
        ck_assert_uint_eq(r.s.serial, 7);
        ck_assert_uint_eq(r.s.marks, w.s.marks);
        moat_session_admitted(table, s, 5, generation, 7);
        moat_session_read(table, s, &r);
        ck_assert_uint_eq(r.s.marks, w.s.marks);
        /* The fifteenth half besides zero was the last to have a place of its own. */
        if (i % 16 != 15)
            ck_assert_uint_eq(r.generation, generation);
        if (i == 14)
            break;
    }
    close_table();
}
END_TEST

/* --- another table over the same mapping --- */

START_TEST(a_table_hands_over_without_a_rebuild)
{
    enum { N = 5000 };
    uint32_t at[N / 2];

    open_table(N, N / 4);
    for (uint32_t i = 0; i < N / 2; i++)
        at[i] = insert(i, i % 4 ? MOAT_FAM_IP4 : MOAT_FAM_IP6);
    for (uint32_t i = 0; i < 10; i++) /* still in limbo */
        ck_assert(moat_session_remove_if(table, at[i], always, NULL));
    moat_session_thread_flush(table, &thread);
    ck_assert(!moat_session_table_resume(table)); /* nobody has left */
    moat_session_table_leave(table);
    moat_session_table_destroy(table);

    table = moat_session_table_create(map);
    ck_assert_ptr_nonnull(table);
    ck_assert(moat_session_table_resume(table));
    ck_assert(!moat_session_table_resume(table));
    ck_assert_uint_eq(moat_session_table_used(table), N / 2 - 10);
    for (uint32_t i = 0; i < N / 2; i++)
        ck_assert_uint_eq(find(i, i % 4 ? MOAT_FAM_IP4 : MOAT_FAM_IP6),
                          i < 10 ? MOAT_NO_SESSION : at[i]);
    ck_assert_uint_eq(fill(N, MOAT_FAM_IP4), N / 2 + 10);
    close_table();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("capacity");
    TCase *tc = tcase_create("promises");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, ipv4_fills_the_whole_table, 0, sizeof sizes / sizeof *sizes);
    tcase_add_loop_test(tc, ipv6_fills_its_share, 0, sizeof sizes / sizeof *sizes);
    tcase_add_test(tc, a_full_table_lives);
    tcase_add_test(tc, removal_waits_when_too_many_wait);
    tcase_add_test(tc, memory_of_a_session);
    tcase_add_test(tc, counters_add_up);
    tcase_add_test(tc, large_counters_survive);
    tcase_add_test(tc, generations_are_kept_whole);
    tcase_add_test(tc, a_table_hands_over_without_a_rebuild);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
