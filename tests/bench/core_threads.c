/* SPDX-License-Identifier: Apache-2.0 */

/* Two packet threads, each on a core of its own, against one, at b's slot.
 *
 *   lookup  each thread has sessions of its own, in one table: bursts both ways by turns
 *   insert  each thread opens connections of its own
 *   shared  all packets are of the same sessions: one thread has those to the VM, the other
 *           those from it; the single thread has both by turns
 *
 * A thread's rate is that of its median chunk of bursts; two threads' is the sum. They measure
 * between the same two points of time, and one that is done goes on until the other is. */

#include "core_rows.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "rig.h"
#include "timing.h"

#define CONNS 16384 /* of a thread; in `shared` of both */
#define SHARED_CONNS 1024
#define ROUND_CHUNKS 201
#define ROUND_BURSTS 32

enum what { LOOKUP, INSERT, SHARED };

struct worker {
    struct rig_thread thread;
    pthread_t id;
    enum what what;
    unsigned nr, n_workers;
    int back;
    uint32_t next, from, n_conns;
    double cycles;               /* per packet, the median */
} __attribute__((aligned(256))); /* no line, nor its neighbour, belongs to two threads */

static struct rig rig;
static unsigned ready, done; /* atomic */

static void draw(struct worker *w)
{
    for (unsigned i = 0; i < FRAME_BURST; i++) {
        uint32_t c =
            w->what == INSERT ? w->next++ : w->from + next_random(&w->thread.random) % w->n_conns;

        frame_make(w->thread.frame[i], 0, c, w->back, 0);
    }
}

static uint64_t burst(struct worker *w)
{
    uint64_t t;

    draw(w);
    t = rig_judge(&w->thread, RIG_B, w->back ? MOAT_FROM_VM : MOAT_TO_VM, FRAME_BURST);
    if (w->what == LOOKUP || (w->what == SHARED && w->n_workers == 1))
        w->back = !w->back;
    return t;
}

static double chunk(struct worker *w)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < ROUND_BURSTS; i++)
        sum += burst(w);
    return (double)sum / ROUND_BURSTS / FRAME_BURST;
}

static void *work(void *w_)
{
    struct worker *w = w_;
    double t[ROUND_CHUNKS];

    rig_thread_init(&w->thread, &rig, w->nr);
    __atomic_fetch_add(&ready, 1, __ATOMIC_ACQ_REL);
    while (__atomic_load_n(&ready, __ATOMIC_ACQUIRE) < w->n_workers)
        __builtin_ia32_pause();
    for (unsigned i = 0; i < ROUND_CHUNKS / 4; i++)
        chunk(w); /* warm */
    for (unsigned i = 0; i < ROUND_CHUNKS; i++)
        t[i] = chunk(w);
    __atomic_fetch_add(&done, 1, __ATOMIC_ACQ_REL);
    while (__atomic_load_n(&done, __ATOMIC_ACQUIRE) < w->n_workers)
        if (w->what == INSERT)
            __builtin_ia32_pause(); /* what it would open has no room reserved */
        else
            chunk(w);
    if (w->thread.refused)
        rig_die("packets were refused");
    qsort(t, ROUND_CHUNKS, sizeof *t, by_value);
    w->cycles = t[ROUND_CHUNKS / 2];
    return NULL;
}

/* Packets per cycle of n threads together. */
static double rate(enum what what, unsigned n)
{
    static struct worker w[2];
    static uint32_t opened = 1u << 20; /* above what is live: each run opens others */
    double sum = 0;

    ready = done = 0;
    for (unsigned i = 0; i < n; i++) {
        memset(&w[i], 0, sizeof w[i]);
        w[i].what = what;
        w[i].nr = i;
        w[i].n_workers = n;
        w[i].from = what == LOOKUP ? i * CONNS : 0;
        w[i].n_conns = what == LOOKUP ? CONNS : SHARED_CONNS;
        w[i].back = what == SHARED && i == 1;
        w[i].next = opened;
        opened += 1u << 20;
    }
    for (unsigned i = 0; i < n; i++)
        rig_thread_create(&w[i].id, i ? 0 : 1, work, &w[i]);
    for (unsigned i = 0; i < n; i++)
        pthread_join(w[i].id, NULL);
    for (unsigned i = 0; i < n; i++)
        sum += 1 / w[i].cycles;
    return sum;
}

void core_threads(const char *name)
{
    static const char *const names[] = {"lookup", "insert", "shared"};
    static struct rig_thread t;
    struct rig_conf conf = {.n_sessions = 1u << 21};
    enum what what = LOOKUP;
    double one, two;

    while (strcmp(names[what], name))
        if (++what > SHARED)
            rig_die("threads lookup|insert|shared");
    rig_start(&rig, &conf);
    rig_thread_init(&t, &rig, 2);
    rig_open(&t, 0, 0, 2 * CONNS, false);
    one = rate(what, 1);
    two = rate(what, 2);
    rig_want(&t, RIG_B, rig_sessions(&rig, RIG_B));
    printf("%.2f %.2f\n", two * tsc_hz() / 1e6, one * tsc_hz() / 1e6);
    rig_stop(&rig);
}
