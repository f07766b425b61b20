/* SPDX-License-Identifier: Apache-2.0 */

/* The corners of the session table that traffic hardly reaches: buckets that are full,
 * addresses that fold to the same key, a mapping with damaged entries, no memory.  Includes
 * the table's source: collisions are made with its own hash. */

#include <check.h>
#include <stdlib.h>

#include <smmintrin.h>

static unsigned allocations_left = 1000000;

static void *limited_malloc(size_t n)
{
    return allocations_left && allocations_left-- ? malloc(n) : NULL;
}

static void *limited_aligned_alloc(size_t to, size_t n)
{
    return allocations_left && allocations_left-- ? aligned_alloc(to, n) : NULL;
}

/* Called where the table fetches ahead: between a look at a bucket and the next. */
static void (*meanwhile)(void);

static void fetch(const void *p, ...)
{
    (void)p;
    if (meanwhile)
        meanwhile();
}

#define malloc limited_malloc
#define aligned_alloc limited_aligned_alloc
#define __builtin_prefetch fetch
#include "datapath/session.c"
#undef malloc
#undef aligned_alloc
#undef __builtin_prefetch

#define N_SESSIONS 128
#define N_BUCKETS 16
#define TAG 5u

static struct moat_mapping *map;
static struct moat_session_table *table;
static struct moat_thread thread;

static bool always(void *aux, const struct moat_session *s)
{
    (void)aux;
    (void)s;
    return true;
}

static void setup(void)
{
    static const uint64_t seed[4] = {1, 2, 3, 4};
    char err[256] = "";

    map = moat_mapping_open(NULL, 1, N_SESSIONS, N_SESSIONS, seed, err, sizeof err);
    ck_assert_msg(map != NULL, "%s", err);
    ck_assert_uint_eq(map->head->n_buckets, N_BUCKETS);
    table = moat_session_table_create(map);
    ck_assert_ptr_nonnull(table);
    ck_assert_uint_eq(moat_session_table_recover(table, always, NULL), 0);
    memset(&thread, 0, sizeof thread);
}

static void teardown(void)
{
    moat_session_table_destroy(table);
    moat_mapping_close(map);
}

/* UDP over IPv4, number n of very many. */
static struct moat_session_whole tuple(uint32_t n)
{
    struct moat_session_whole w;

    memset(&w, 0, sizeof w);
    w.s.key = (struct moat_key){.tag = TAG,
                                .local = 0x0100000a,
                                .remote = n >> 16,
                                .lport = (uint16_t)n,
                                .rport = 53,
                                .proto = 17,
                                .family = MOAT_FAM_IP4};
    w.s.side[0].state = 1;
    return w;
}

static uint32_t first_of(const struct moat_session_whole *w)
{
    return moat_session_bucket(table, moat_session_hash(table, &w->s.key));
}

static uint32_t second_of(const struct moat_session_whole *w)
{
    return second_bucket(table, moat_session_hash(table, &w->s.key), w->s.key.tag);
}

/* The next tuple after *n that has these buckets. */
static struct moat_session_whole colliding(uint32_t *n, uint32_t first, uint32_t second)
{
    struct moat_session_whole s;

    do
        s = tuple(++*n);
    while (first_of(&s) != first || second_of(&s) != second);
    return s;
}

static uint32_t insert(const struct moat_session_whole *s)
{
    enum moat_reason reason = MOAT_R_NONE;
    bool found;
    uint32_t i = moat_session_insert(table, &thread, moat_session_hash(table, &s->s.key), s, &found,
                                     &reason);

    ck_assert(!found || i != MOAT_NO_SESSION);
    ck_assert_uint_eq(i == MOAT_NO_SESSION, reason == MOAT_R_TABLE_FULL);
    return i;
}

/* By both ways to look it up; they must agree. */
static uint32_t find(const struct moat_session_whole *s)
{
    struct moat_pkt p = {.src = s->local6, .dst = s->remote6};
    const struct moat_pkt *pkts = &p;
    uint64_t hash = moat_session_hash(table, &s->s.key);
    uint32_t one = moat_session_lookup(table, &s->s.key, hash, &p, MOAT_FROM_VM), bulk;

    moat_session_lookup_bulk(table, &s->s.key, &hash, &pkts, MOAT_FROM_VM, 1, &bulk);
    ck_assert_uint_eq(one, bulk);
    bulk = moat_session_candidate(&table->buckets[moat_session_bucket(table, hash)],
                                  moat_session_way(hash, s->s.key.tag), N_SESSIONS);
    ck_assert_uint_lt(bulk, N_SESSIONS);
    return one;
}

/* --- full buckets --- */

START_TEST(two_full_buckets_refuse_and_lose_nothing)
{
    struct moat_session_whole s[2 * MOAT_BUCKET_WAYS], one_more;
    uint32_t n = 0, used;

    for (unsigned i = 0; i < 2 * MOAT_BUCKET_WAYS; i++) {
        s[i] = colliding(&n, 3, 7);
        ck_assert_uint_ne(insert(&s[i]), MOAT_NO_SESSION);
    }
    used = thread.free[1].n;
    one_more = colliding(&n, 3, 7);
    ck_assert_uint_eq(insert(&one_more), MOAT_NO_SESSION);
    ck_assert_uint_eq(thread.free[1].n, used); /* its entry was given back */
    ck_assert_uint_eq(find(&one_more), MOAT_NO_SESSION);
    for (unsigned i = 0; i < 2 * MOAT_BUCKET_WAYS; i++)
        ck_assert_mem_eq(&table->sessions[find(&s[i])].key, &s[i].s.key, sizeof s[i].s.key);

    /* One goes, from the second bucket: there is room. */
    ck_assert(moat_session_remove_if(table, find(&s[2 * MOAT_BUCKET_WAYS - 1]), always, NULL));
    ck_assert_uint_ne(insert(&one_more), MOAT_NO_SESSION);
    ck_assert_uint_ne(find(&one_more), MOAT_NO_SESSION);
}
END_TEST

START_TEST(both_choices_may_be_one_bucket)
{
    struct moat_session_whole s;
    uint32_t n = 0;

    for (unsigned i = 0; i < MOAT_BUCKET_WAYS; i++) {
        s = colliding(&n, 4, 4);
        ck_assert_uint_ne(insert(&s), MOAT_NO_SESSION);
    }
    s = colliding(&n, 4, 4);
    ck_assert_uint_eq(insert(&s), MOAT_NO_SESSION); /* nobody can be moved aside */
}
END_TEST

START_TEST(an_entry_moves_aside_and_is_found)
{
    struct moat_session_whole full[MOAT_BUCKET_WAYS], movable[MOAT_BUCKET_WAYS], late;
    uint32_t n = 0;

    /* Bucket 7: eight guests that have no other place; bucket 3: eight that have. */
    for (unsigned i = 0; i < MOAT_BUCKET_WAYS; i++) {
        full[i] = colliding(&n, 7, 7);
        ck_assert_uint_ne(insert(&full[i]), MOAT_NO_SESSION);
    }
    for (unsigned i = 0; i < MOAT_BUCKET_WAYS; i++) {
        movable[i] = i ? colliding(&n, 3, 7) : colliding(&n, 3, 9);
        ck_assert_uint_ne(insert(&movable[i]), MOAT_NO_SESSION);
    }
    late = colliding(&n, 3, 7);
    ck_assert_uint_ne(insert(&late), MOAT_NO_SESSION);
    ck_assert_uint_ne(find(&late), MOAT_NO_SESSION);
    for (unsigned i = 0; i < MOAT_BUCKET_WAYS; i++)
        ck_assert_uint_ne(find(&movable[i]), MOAT_NO_SESSION);
    ck_assert_uint_eq(table->buckets[9].index[0], find(&movable[0]));
    late = colliding(&n, 3, 7);
    ck_assert_uint_eq(insert(&late), MOAT_NO_SESSION); /* that was the only one */
}
END_TEST

/* Entries with this bucket as their second choice stay where they are. */
START_TEST(guests_are_not_moved)
{
    struct moat_session_whole s;
    uint32_t n = 0;

    for (unsigned i = 0; i < MOAT_BUCKET_WAYS; i++) { /* bucket 5 full, overflow goes to 3 */
        s = colliding(&n, 5, 3);
        ck_assert_uint_ne(insert(&s), MOAT_NO_SESSION);
    }
    for (unsigned i = 0; i < MOAT_BUCKET_WAYS; i++) {
        s = colliding(&n, 5, 3);
        ck_assert_uint_ne(insert(&s), MOAT_NO_SESSION);
    }
    s = colliding(&n, 3, 5);
    ck_assert_uint_eq(insert(&s), MOAT_NO_SESSION);
}
END_TEST

/* --- one key, other addresses --- */

/* Addresses that start with the salt's third word fold to zero, whatever follows: nobody
 * knows the salt, but a collision by chance looks the same. */
static struct moat_session_whole folded(uint8_t local, uint8_t remote)
{
    struct moat_session_whole s = tuple(1);

    s.s.key.family = MOAT_FAM_IP6;
    memcpy(s.local6, &table->seed.w[2], 8);
    memcpy(s.remote6, &table->seed.w[2], 8);
    s.local6[15] = local;
    s.remote6[15] = remote;
    s.s.key.local = (uint32_t)fold6(table, s.local6);
    s.s.key.remote = (uint32_t)fold6(table, s.remote6);
    return s;
}

START_TEST(full_addresses_decide)
{
    struct moat_session_whole a = folded(1, 1), b = folded(1, 2), c = folded(2, 1),
                              d = folded(2, 2);
    uint32_t at[3];

    ck_assert_mem_eq(&a.s.key, &d.s.key, sizeof a.s.key);
    at[0] = insert(&a);
    at[1] = insert(&b);
    at[2] = insert(&c);
    ck_assert_uint_ne(at[0], at[1]);
    ck_assert_uint_ne(at[0], at[2]);
    ck_assert_uint_ne(at[1], at[2]);
    ck_assert_uint_eq(find(&a), at[0]);
    ck_assert_uint_eq(find(&b), at[1]);
    ck_assert_uint_eq(find(&c), at[2]);
    ck_assert_uint_eq(find(&d), MOAT_NO_SESSION);
    ck_assert(moat_session_remove_if(table, at[0], always, NULL));
    ck_assert_uint_eq(find(&a), MOAT_NO_SESSION);
    ck_assert_uint_eq(find(&b), at[1]);
}
END_TEST

/* The tags 0 and 1 of a way mean something else. */
START_TEST(a_way_tag_is_never_reserved)
{
    ck_assert_uint_eq(moat_session_way(0, 0), 2);
    ck_assert_uint_eq(moat_session_way(1ull << 48, 0), 3);
    ck_assert_uint_eq(moat_session_way(2ull << 48, 0), 2);
}
END_TEST

/* --- removal --- */

struct opinion {
    unsigned asked, over_until;
    struct moat_session *gone; /* its tag is zeroed when asked the first time */
};

static bool changes_its_mind(void *o_, const struct moat_session *s)
{
    struct opinion *o = o_;

    (void)s;
    if (o->gone)
        o->gone->key.tag = 0;
    return ++o->asked <= o->over_until;
}

START_TEST(removal_asks_again_under_the_lock)
{
    struct moat_session_whole s = tuple(1);
    uint32_t i = insert(&s);
    struct opinion o = {.over_until = 1};

    ck_assert(!moat_session_remove_if(table, i, changes_its_mind, &o));
    ck_assert_uint_eq(o.asked, 2);
    ck_assert_uint_eq(find(&s), i);
    o = (struct opinion){.over_until = 2, .gone = &table->sessions[i]};
    ck_assert(!moat_session_remove_if(table, i, changes_its_mind, &o));
    ck_assert(!moat_session_remove_if(table, i, always, NULL)); /* it is not live */
    ck_assert_uint_eq(table->n_limbo, 0);
}
END_TEST

/* --- a damaged mapping --- */

START_TEST(an_index_beyond_the_table_is_not_followed)
{
    struct moat_session_whole s = tuple(1), late;
    uint32_t n = 1, i = insert(&s);
    struct moat_bucket *b = &table->buckets[first_of(&s)];

    for (unsigned w = 0; w < MOAT_BUCKET_WAYS; w++)
        if (b->tag[w])
            b->index[w] = UINT32_MAX;
    ck_assert_uint_eq(find(&s), MOAT_NO_SESSION);
    for (unsigned w = 0; w < MOAT_BUCKET_WAYS; w++) {
        b->tag[w] = w & 1 ? 1 : 7; /* being written; of nobody */
        b->index[w] = w & 2 ? N_SESSIONS : i;
    }
    /* No way of it can be moved, and the other bucket takes it. */
    late = colliding(&n, first_of(&s), (first_of(&s) + 1) % N_BUCKETS);
    ck_assert_uint_ne(insert(&late), MOAT_NO_SESSION);
    ck_assert_uint_ne(find(&late), MOAT_NO_SESSION);
    for (unsigned k = 1; k < MOAT_BUCKET_WAYS; k++) {
        late = colliding(&n, first_of(&s), (first_of(&s) + 1) % N_BUCKETS);
        ck_assert_uint_ne(insert(&late), MOAT_NO_SESSION);
    }
    late = colliding(&n, first_of(&s), (first_of(&s) + 1) % N_BUCKETS);
    ck_assert_uint_eq(insert(&late), MOAT_NO_SESSION);
}
END_TEST

/* Each field that recovery checks. */
static void damage(struct moat_session *s, unsigned how)
{
    switch (how) {
    case 0:
        s->key.family = 5;
        break;
    case 1: /* lies where there is no room for its addresses */
        s->key.family = MOAT_FAM_IP6;
        table->first6 = N_SESSIONS;
        break;
    case 2:
        s->key.vlan = 4095;
        break;
    case 3:
        s->side[0].state = 77;
        break;
    case 4:
        s->key.proto = 6;
        s->side[1].state = MOAT_N_TCP_STATES;
        break;
    case 5:
        s->key.tag = 0;
        break;
    default:
        s->side[0].state = s->side[1].state = 0;
    }
}

START_TEST(damaged_entries_are_dropped)
{
    struct moat_session_whole good = tuple(1), bad = tuple(2);
    uint32_t i = insert(&bad);

    insert(&good);
    damage(&table->sessions[i], (unsigned)_i);
    ck_assert_uint_eq(moat_session_table_recover(table, always, NULL), 1);
    ck_assert_uint_eq(table->sessions[i].key.tag, 0);
    ck_assert_uint_ne(find(&good), MOAT_NO_SESSION);
    ck_assert_uint_eq(moat_session_table_used(table), 1);
}
END_TEST

static bool is_number_one(void *aux, const struct moat_session *s)
{
    (void)aux;
    return s->key.lport == 1;
}

START_TEST(recovery_keeps_what_it_is_told_to)
{
    struct moat_session_whole one = tuple(1), two = tuple(2);

    insert(&one);
    insert(&two);
    ck_assert_uint_eq(moat_session_table_recover(table, is_number_one, NULL), 1);
    ck_assert_uint_ne(find(&one), MOAT_NO_SESSION);
    ck_assert_uint_eq(find(&two), MOAT_NO_SESSION);
    ck_assert_uint_eq(moat_session_table_recover(table, NULL, NULL), 0);
    ck_assert_uint_eq(moat_session_table_used(table), 0);
}
END_TEST

START_TEST(twins_and_too_many_of_one_bucket_are_dropped)
{
    uint32_t n = 0;

    table->sessions[1] = table->sessions[2] = tuple(1).s; /* as no insert leaves them */
    for (unsigned i = 0; i < 2 * MOAT_BUCKET_WAYS + 4; i++)
        table->sessions[10 + i] = colliding(&n, 3, 7).s;
    ck_assert_uint_eq(moat_session_table_recover(table, always, NULL), 1 + 2 * MOAT_BUCKET_WAYS);
    ck_assert_uint_eq(moat_session_table_used(table), 1 + 2 * MOAT_BUCKET_WAYS);
}
END_TEST

/* --- the rest --- */

START_TEST(no_memory_no_table)
{
    for (unsigned n = 0; n < 2; n++) {
        allocations_left = n;
        ck_assert_ptr_null(moat_session_table_create(map));
    }
    allocations_left = 1000000;
    moat_session_table_destroy(NULL);
}
END_TEST

START_TEST(an_error_ends_queries_sooner_and_nothing_else)
{
    static const uint8_t protos[] = {1, 58, 17, 47};

    for (unsigned i = 0; i < 4; i++) {
        struct moat_session s = tuple(1).s;

        s.key.proto = protos[i];
        ck_assert_uint_ne(moat_session_timer(&s), MOAT_T_ICMP_ERROR);
        s.marks = MOAT_SES_MARK_ERROR;
        ck_assert_uint_eq(moat_session_timer(&s) == MOAT_T_ICMP_ERROR, i < 2);
    }
}
END_TEST

/* --- moves while somebody looks --- */

static struct moat_session_whole comer;

static void comes_meanwhile(void)
{
    meanwhile = NULL;
    ck_assert_uint_ne(insert(&comer), MOAT_NO_SESSION);
}

/* The bucket's first session moves to its second one, and its way is the comer's, after who looks
 * for it has seen the way and that nothing is away. */
START_TEST(moves_between_two_looks)
{
    struct moat_session_whole first, s;
    const struct moat_pkt p = {.src = NULL}, *pkts = &p;
    uint32_t n = 0, out, at;
    uint64_t hash;

    first = colliding(&n, 3, 5);
    at = insert(&first);
    for (unsigned i = 1; i < MOAT_BUCKET_WAYS; i++) {
        s = colliding(&n, 3, 7);
        ck_assert_uint_ne(insert(&s), MOAT_NO_SESSION);
    }
    for (unsigned i = 0; i < MOAT_BUCKET_WAYS; i++) {
        s = colliding(&n, 7, 9);
        ck_assert_uint_ne(insert(&s), MOAT_NO_SESSION);
    }
    comer = colliding(&n, 3, 7);
    hash = moat_session_hash(table, &first.s.key);
    meanwhile = comes_meanwhile;
    moat_session_lookup_bulk(table, &first.s.key, &hash, &pkts, MOAT_FROM_VM, 1, &out);
    ck_assert_ptr_null(meanwhile);
    ck_assert_uint_eq(table->buckets[3].away, 1);
    ck_assert_uint_eq(out, at);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("bucket");
    TCase *tc = tcase_create("corners");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, two_full_buckets_refuse_and_lose_nothing);
    tcase_add_test(tc, both_choices_may_be_one_bucket);
    tcase_add_test(tc, an_entry_moves_aside_and_is_found);
    tcase_add_test(tc, guests_are_not_moved);
    tcase_add_test(tc, moves_between_two_looks);
    tcase_add_test(tc, full_addresses_decide);
    tcase_add_test(tc, a_way_tag_is_never_reserved);
    tcase_add_test(tc, removal_asks_again_under_the_lock);
    tcase_add_test(tc, an_index_beyond_the_table_is_not_followed);
    tcase_add_loop_test(tc, damaged_entries_are_dropped, 0, 7);
    tcase_add_test(tc, recovery_keeps_what_it_is_told_to);
    tcase_add_test(tc, twins_and_too_many_of_one_bucket_are_dropped);
    tcase_add_test(tc, no_memory_no_table);
    tcase_add_test(tc, an_error_ends_queries_sooner_and_nothing_else);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
