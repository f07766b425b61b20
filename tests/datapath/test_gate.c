/* SPDX-License-Identifier: Apache-2.0 */

/* Engines are exchanged under two packet threads, through the loader's gate, in both ways.  In the
 * end every packet has been judged by an engine that was whole: all that is permitted has passed,
 * nothing else has, and each session has counted each of its packets, once.  Run under the
 * thread sanitizer, too. */

#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "datapath/loader/engine_abi.h"
#include "datapath/loader/gate.h"
#include "tests/lib/rig.h"
#include "tests/lib/vm_frame.h"

#ifdef __SANITIZE_THREAD__
#define EXCHANGES 20
#else
#define EXCHANGES 60
#endif
#define ROUNDS_BETWEEN 3 /* of both threads, at least */
#define FLOWS 700
#define FIRST_PORT 1000
#define BURST 16
#define TABLE 4096
#define PATIENCE_US 1000000 /* a thread may not be running */

static const char policy[] = "policy \"t\" version 1\n"
                             "tier t { allow from any to any service udp 53, udp 1000-2000 }\n"
                             "default drop\n";

static struct rig r;
static struct moat_engine_ops tables[2]; /* only their addresses matter */
static struct moat_engine *engines[2];   /* behind them */
static bool stop;                        /* atomic */
static uint32_t rounds[2];               /* atomic; of each thread */

/* What a thread has pushed of each flow, by hop; of one direction each. */
static uint32_t pushed[2][2][FLOWS];
static uint64_t refused, leaked; /* atomic */

/* As the loader does it for packets to a VM: they wait. */
static uint32_t through_gate(unsigned slot, enum moat_dir dir, struct moat_pkt *p, unsigned n)
{
    const struct moat_engine_ops *table;
    struct gate_reader *self;
    struct moat_engine *e;
    uint32_t passed;

    while (!(table = gate_enter(&self))) {
        gate_leave(self);
        gate_wait();
    }
    e = engines[table - tables];
    passed = moat_pipe_burst(moat_thread_self(e), e->ports[slot], dir, p, n);
    gate_leave(self);
    return passed;
}

/* The flows from `first` on, through both slots. */
static void push(unsigned up, unsigned first, const struct frame *frames)
{
    struct moat_pkt p[BURST];
    unsigned n = first + BURST <= FLOWS ? BURST : FLOWS - first;

    for (unsigned hop = 0; hop < 2; hop++) {
        uint32_t passed;

        for (unsigned i = 0; i < n; i++)
            p[i] = (struct moat_pkt){.data = frames[first + i].data,
                                     .len = frames[first + i].len,
                                     .total = frames[first + i].len};
        passed = through_gate(up == hop, hop ? MOAT_TO_VM : MOAT_FROM_VM, p, n);
        for (unsigned i = 0; i < n; i++) {
            if (passed >> i & 1)
                pushed[up][hop][first + i]++;
            else
                __atomic_fetch_add(&refused, 1, __ATOMIC_RELAXED);
        }
    }
}

/* From a to b, or the other way; and what is forbidden. */
static void *packets(void *up_)
{
    unsigned up = up_ != NULL;
    struct frame *frames = calloc(FLOWS, sizeof *frames);
    struct frame bad = vm_udp(!up, up, 54, 54);

    if (!frames)
        abort();
    for (unsigned i = 0; i < FLOWS; i++)
        frames[i] = up ? vm_udp(0, 1, (uint16_t)(FIRST_PORT + i), 53)
                       : vm_udp(1, 0, 53, (uint16_t)(FIRST_PORT + i));
    for (unsigned k = 0; !__atomic_load_n(&stop, __ATOMIC_ACQUIRE); k += BURST) {
        struct moat_pkt p = {.data = bad.data, .len = bad.len, .total = bad.len};

        if (k >= FLOWS) {
            k = 0;
            __atomic_fetch_add(&rounds[up], 1, __ATOMIC_RELEASE);
        }
        push(up, k, frames);
        if (through_gate(!up, MOAT_FROM_VM, &p, 1))
            __atomic_fetch_add(&leaked, 1, __ATOMIC_RELAXED);
    }
    free(frames);
    return NULL;
}

static void wait_for_rounds(void)
{
    uint32_t from[2];

    for (unsigned i = 0; i < 2; i++)
        from[i] = __atomic_load_n(&rounds[i], __ATOMIC_ACQUIRE);
    for (unsigned i = 0; i < 2; i++)
        while (__atomic_load_n(&rounds[i], __ATOMIC_ACQUIRE) - from[i] < ROUNDS_BETWEEN)
            sched_yield();
}

static void exchange(unsigned n)
{
    static struct moat_handover offer;
    struct moat_engine *e = rig_successor(&r, &offer, n % 2, TABLE);
    char err[256] = "";
    int rc = -EAGAIN;

    while (rc == -EAGAIN) {
        ck_assert_msg(!moat_handover_prepare(e, err, sizeof err), "%s", err);
        ck_assert(gate_close(PATIENCE_US));
        rc = moat_handover_take(e, err, sizeof err);
        engines[(n + 1) % 2] = rc ? NULL : e;
        gate_open(&tables[rc ? n % 2 : (n + 1) % 2]);
    }
    ck_assert_msg(!rc, "%s", err);
    rig_succeed(&r, e);
}

/* What was pushed of a flow, by the session that a slot has of it. */
static void check_session(const struct moat_session_whole *w)
{
    unsigned slot = (w->s.key.tag & 0xfff) - 1;
    uint16_t port = slot ? w->s.key.rport : w->s.key.lport;
    unsigned flow = (unsigned)(port - FIRST_PORT);

    ck_assert_uint_lt(flow, FLOWS);
    /* a sends requests (up), b answers; each is seen where it leaves and where it arrives. */
    ck_assert_uint_eq(w->packets[MOAT_FROM_VM], pushed[!slot][0][flow]);
    ck_assert_uint_eq(w->packets[MOAT_TO_VM], pushed[slot][1][flow]);
}

static void check_sessions(void)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < moat_session_table_size(r.e->sessions); i++) {
        const struct moat_session *s = moat_session_at(r.e->sessions, i);
        struct moat_session_whole w;

        if (!s->key.tag)
            continue;
        moat_session_read(r.e->sessions, s, &w);
        check_session(&w);
        n++;
    }
    ck_assert_uint_eq(n, 2 * FLOWS);
}

static uint64_t sum(unsigned up, unsigned hop)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < FLOWS; i++)
        n += pushed[up][hop][i];
    return n;
}

START_TEST(no_packet_is_lost_or_judged_by_nobody)
{
    char path[] = "/dev/shm/moat-test-XXXXXX";
    pthread_t t[2];
    int fd = mkstemp(path);

    ck_assert_int_ge(fd, 0);
    close(fd);
    rig_create(&r, path);
    for (unsigned s = 0; s < RIG_SLOTS; s++) {
        rig_claim(&r, s, MOAT_SLOT_ACTIVE);
        rig_publish(&r, s, policy);
    }
    engines[0] = r.e;
    ck_assert_msg(gate_init(&tables[0]), "no membarrier(2)");
    pthread_create(&t[0], NULL, packets, NULL);
    pthread_create(&t[1], NULL, packets, &r);
    for (unsigned n = 0; n < EXCHANGES; n++) {
        wait_for_rounds();
        exchange(n);
    }
    wait_for_rounds();
    __atomic_store_n(&stop, true, __ATOMIC_RELEASE);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(t[i], NULL);

    ck_assert_uint_eq(refused, 0);
    ck_assert_uint_eq(leaked, 0);
    ck_assert_uint_eq(r.e->replacements, EXCHANGES);
    check_sessions();
    ck_assert_uint_eq(rig_counter(&r, 0, MOAT_C_FROM_VM_PKTS), sum(1, 0));
    ck_assert_uint_eq(rig_counter(&r, 1, MOAT_C_TO_VM_PKTS), sum(1, 1));
    ck_assert_uint_eq(rig_counter(&r, 1, MOAT_C_FROM_VM_PKTS), sum(0, 0));
    ck_assert_uint_eq(rig_counter(&r, 0, MOAT_C_TO_VM_PKTS), sum(0, 1));
    rig_destroy(&r);
    unlink(path);
}
END_TEST

/* Somebody stays in: the gate opens again, and is not stuck. */
static uint32_t phase; /* atomic */

static void *stays(void *arg)
{
    struct gate_reader *self;
    const struct moat_engine_ops *table = gate_enter(&self);

    (void)arg;
    ck_assert_ptr_eq(table, &tables[0]);
    __atomic_store_n(&phase, 1, __ATOMIC_RELEASE);
    while (__atomic_load_n(&phase, __ATOMIC_ACQUIRE) != 2)
        sched_yield();
    gate_leave(self);
    __atomic_store_n(&phase, 3, __ATOMIC_RELEASE);
    return NULL;
}

START_TEST(nobody_is_waited_for_in_vain)
{
    struct gate_reader *self;
    pthread_t t;

    ck_assert(gate_init(&tables[0]));
    pthread_create(&t, NULL, stays, NULL);
    while (__atomic_load_n(&phase, __ATOMIC_ACQUIRE) != 1)
        sched_yield();
    ck_assert(!gate_close(1000));
    ck_assert_ptr_eq(gate_enter(&self), &tables[0]);
    gate_leave(self);
    __atomic_store_n(&phase, 2, __ATOMIC_RELEASE);
    pthread_join(t, NULL);
    ck_assert(gate_close(PATIENCE_US));
    ck_assert_ptr_null(gate_enter(&self));
    gate_leave(self);
    gate_open(&tables[1]);
    ck_assert_ptr_eq(gate_enter(&self), &tables[1]);
    gate_leave(self);
}
END_TEST

/* More threads than the gate has readers for, all at once. */
#define CROWD 300

static void *one_of_many(void *barrier)
{
    struct gate_reader *self;

    while (!gate_enter(&self)) {
        gate_leave(self);
        gate_wait();
    }
    pthread_barrier_wait(barrier);
    /* The others hold what they have until all have it. */
    gate_leave(self);
    pthread_barrier_wait(barrier);
    return NULL;
}

START_TEST(more_threads_than_readers)
{
    pthread_barrier_t barrier;
    pthread_t t[CROWD];

    ck_assert(gate_init(&tables[0]));
    pthread_barrier_init(&barrier, NULL, CROWD + 1);
    for (unsigned i = 0; i < CROWD; i++)
        ck_assert_int_eq(pthread_create(&t[i], NULL, one_of_many, &barrier), 0);
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    ck_assert(gate_close(PATIENCE_US));
    gate_open(&tables[0]);
    for (unsigned i = 0; i < CROWD; i++)
        pthread_join(t[i], NULL);
    pthread_barrier_destroy(&barrier);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gate");
    TCase *t = tcase_create("exchange under packets");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(t, 240);
    tcase_add_test(t, no_packet_is_lost_or_judged_by_nobody);
    tcase_add_test(t, nobody_is_waited_for_in_vain);
    tcase_add_test(t, more_threads_than_readers);
    suite_add_tcase(s, t);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
