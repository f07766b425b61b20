/* SPDX-License-Identifier: Apache-2.0 */

/* Two threads in one table of fragments: on the same datagrams, each of which is to arrive whole;
 * and with anything, of which nothing is to arrive twice or without its first fragment.  Then
 * nothing is left. */

#include "datapath/fragment.h"

#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* ck_assert() writes to a pipe each time: too slow for a million of them. */
#define MUST(C)                                                                                    \
    do {                                                                                           \
        if (!(C))                                                                                  \
            ck_abort_msg("%s", #C);                                                                \
    } while (0)

static const uint8_t address[2][16] = {{10, 0, 0, 1}, {10, 0, 0, 2}};

#define BATCHES 1500
#define BATCH 12 /* datagrams at once; 4 held ones of each, in one slot's share */
#define PIECES 5

struct got {
    uint64_t number;
    uint32_t at, len;
};

struct worker {
    pthread_t thread;
    struct moat_fragments *table;
    pthread_barrier_t *barrier;
    uint64_t rng;
    uint32_t n_got;
    struct got got[400000];
    unsigned delivered[BATCH][PIECES]; /* of this batch */
};

static struct worker workers[2];

static uint32_t some(struct worker *w, uint32_t n)
{
    w->rng = w->rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(w->rng >> 33) % n;
}

struct release_to {
    struct worker *worker;
    uint64_t number;
};

/* The frame says what it is. */
static void release_piece(void *aux, const uint8_t *frame, uint32_t len)
{
    struct release_to *r = aux;
    uint32_t head[4];

    MUST(len == 64);
    memcpy(head, frame, sizeof head);
    if (head[2] < PIECES)
        r->worker->delivered[head[3]][head[2]]++;
    else
        r->worker->got[r->worker->n_got++] =
            (struct got){.number = r->number, .at = head[0], .len = head[1]};
}

static void fill(struct moat_pkt *p, uint8_t *frame, uint32_t id, uint32_t at, uint32_t len,
                 bool more, uint32_t piece, uint32_t datagram)
{
    uint32_t head[4] = {at, len, piece, datagram};

    memset(p, 0, sizeof *p);
    memset(frame, 0, 64);
    memcpy(frame, head, sizeof head);
    p->data = frame;
    p->len = p->total = 64;
    p->family = MOAT_FAM_IP4;
    p->kind = MOAT_PKT_UDP;
    p->proto = 17;
    p->frag = at ? 2 : 1;
    p->frag_more = more;
    p->frag_id = id;
    p->frag_at = (uint16_t)at;
    p->frag_len = len;
    p->frag_head = 20;
    p->src = address[0];
    p->dst = address[1];
}

/* Both threads send all fragments of the same datagrams, each in an order of its own.  What
 * comes when a datagram is complete begins another one, which ends with the batch. */
static void *send_all(void *aux)
{
    struct worker *w = aux;
    struct moat_fragment_ctx c = {.tag = 1, .serial = 1, .limit = BATCH};
    uint8_t frame[64];

    for (uint32_t batch = 0; batch < BATCHES; batch++) {
        uint32_t order[BATCH * PIECES];

        memset(w->delivered, 0, sizeof w->delivered);
        for (uint32_t i = 0; i < BATCH * PIECES; i++)
            order[i] = i;
        for (uint32_t i = BATCH * PIECES; i > 1; i--) {
            uint32_t j = some(w, i), o = order[j];

            order[j] = order[i - 1];
            order[i - 1] = o;
        }
        pthread_barrier_wait(w->barrier);
        for (uint32_t i = 0; i < BATCH * PIECES; i++) {
            uint32_t datagram = order[i] / PIECES, piece = order[i] % PIECES;
            struct release_to to = {.worker = w};
            struct moat_fragment_answer a;
            struct moat_pkt p;

            fill(&p, frame, batch * BATCH + datagram, piece * 8, 8, piece != PIECES - 1, piece,
                 datagram);
            switch (moat_fragment_in(w->table, &c, &p, &a)) {
            case MOAT_FRAGMENT_JUDGE:
                w->delivered[datagram][piece]++;
                moat_fragment_judged(w->table, &a, true, NULL, 0, release_piece, &to);
                break;
            case MOAT_FRAGMENT_PASS:
                w->delivered[datagram][piece]++;
                break;
            case MOAT_FRAGMENT_REFUSE:
                MUST(a.reason == MOAT_R_FRAG_OVERLAP);
                break;
            case MOAT_FRAGMENT_HOLD:
                break;
            }
        }
        pthread_barrier_wait(w->barrier);
        c.now_s += MOAT_FRAGMENT_S;
        for (uint32_t i = 0; w == workers && i < BATCH * PIECES; i++)
            MUST(w->delivered[i / PIECES][i % PIECES] +
                     workers[1].delivered[i / PIECES][i % PIECES] >=
                 1);
        for (int i = 0; w == workers && i < 20; i++)
            moat_fragments_age(w->table, c.now_s);
        pthread_barrier_wait(w->barrier);
    }
    return NULL;
}

static struct moat_fragments *start(void *(*body)(void *), uint32_t n_held,
                                    pthread_barrier_t *barrier)
{
    struct moat_fragments *t = moat_fragments_create(&(struct moat_fragment_conf){
        .n_slots = 2, .n_datagrams = 64, .n_held = n_held, .seed = {5, 6}});

    ck_assert_ptr_nonnull(t);
    for (int i = 0; i < 2; i++) {
        workers[i].table = t;
        workers[i].barrier = barrier;
        workers[i].rng = (uint64_t)i + 1;
        workers[i].n_got = 0;
        ck_assert_int_eq(pthread_create(&workers[i].thread, NULL, body, &workers[i]), 0);
    }
    return t;
}

static void nothing_is_left(struct moat_fragments *t, uint32_t now_s)
{
    for (int i = 0; i < 20; i++)
        moat_fragments_age(t, now_s);
    for (uint32_t slot = 0; slot < 2; slot++) {
        MUST(moat_fragments_used(t, slot) == 0);
        MUST(moat_fragments_held(t, slot) == 0);
    }
    MUST(moat_fragments_used(t, UINT32_MAX) == 0);
    MUST(moat_fragments_held(t, UINT32_MAX) == 0);
    moat_fragments_destroy(t);
}

START_TEST(threads_share_datagrams)
{
    pthread_barrier_t barrier;
    struct moat_fragments *t;

    pthread_barrier_init(&barrier, NULL, 2);
    t = start(send_all, 4 * 4 * BATCH, &barrier);
    for (int i = 0; i < 2; i++)
        pthread_join(workers[i].thread, NULL);
    pthread_barrier_destroy(&barrier);
    nothing_is_left(t, BATCHES * MOAT_FRAGMENT_S);
}
END_TEST

/* Anything, at few names; the first one ages beside it. */
static void *send_anything(void *aux)
{
    struct worker *w = aux;
    struct moat_fragment_ctx c = {.tag = 1, .serial = 1, .limit = 6};
    uint8_t frame[64];

    for (uint32_t i = 0; i < 300000; i++) {
        uint32_t at = some(w, 3) ? 8 * some(w, 6) : 0, len = 8 * (1 + some(w, 2));
        struct release_to to = {.worker = w};
        struct moat_fragment_answer a;
        enum moat_fragment_say say;
        struct moat_pkt p;

        c.now_s = i * MOAT_FRAGMENT_S / 1500;
        if (w == workers && i % 10 == 0)
            moat_fragments_age(w->table, c.now_s);
        c.slot = some(w, 2);
        fill(&p, frame, some(w, 6), at, len, !at || some(w, 4), PIECES, 0);
        say = moat_fragment_in(w->table, &c, &p, &a);
        to.number = a.datagram;
        if (say == MOAT_FRAGMENT_JUDGE && some(w, 8)) {
            w->got[w->n_got++] = (struct got){.number = a.datagram, .at = at, .len = len};
            moat_fragment_judged(w->table, &a, true, NULL, 0, release_piece, &to);
        } else if (say == MOAT_FRAGMENT_JUDGE) {
            moat_fragment_judged(w->table, &a, false, NULL, 0, NULL, NULL);
        } else if (say == MOAT_FRAGMENT_PASS) {
            w->got[w->n_got++] = (struct got){.number = a.datagram, .at = at, .len = len};
        }
        ck_assert_uint_le(moat_fragments_used(w->table, c.slot), c.limit);
        ck_assert_uint_lt(w->n_got + 8, sizeof w->got / sizeof *w->got);
    }
    return NULL;
}

static int by_number(const void *a, const void *b)
{
    const struct got *x = a, *y = b;

    if (x->number != y->number)
        return x->number < y->number ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}

START_TEST(threads_send_anything)
{
    static struct got all[800000];
    struct moat_fragments *t = start(send_anything, 16, NULL);
    uint32_t n = 0, several = 0;

    for (int i = 0; i < 2; i++) {
        pthread_join(workers[i].thread, NULL);
        memcpy(all + n, workers[i].got, workers[i].n_got * sizeof *all);
        n += workers[i].n_got;
    }
    qsort(all, n, sizeof *all, by_number);
    for (uint32_t i = 0; i < n; i++) {
        if (!i || all[i].number != all[i - 1].number) {
            ck_assert_uint_eq(all[i].at, 0);
        } else {
            ck_assert_uint_ge(all[i].at, all[i - 1].at + all[i - 1].len);
            several++;
        }
    }
    ck_assert_uint_gt(several, 100); /* how the threads meet is not ours to say */
    nothing_is_left(t, 300000);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("fragment_threads");
    TCase *tc = tcase_create("threads");
    SRunner *sr;
    int failed;

    tcase_set_timeout(tc, 300);
    tcase_add_test(tc, threads_share_datagrams);
    tcase_add_test(tc, threads_send_anything);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
