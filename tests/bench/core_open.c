/* SPDX-License-Identifier: Apache-2.0 */

/* New connections.
 *
 * core_new(): opened at both slots, one rule, nothing ends.
 *
 * core_new_rules(): opened at b's slot, each meets RIG_RULES rules, and as many end meanwhile. The
 * engine's clock is the benchmark's own: a turn of it (50 ms) opens TURN_BURSTS bursts and then
 * runs the control thread's turn, whose time counts.  Sessions idle for 2 s are over, so after the
 * warm-up as many end in a turn as begin; that they do is checked.
 *
 * core_stall(): the longest burst of the same.  Everything but the machine is the same in each
 * replay (seed, clock, connections), so what delays a burst in one replay only was the machine:
 * the least of the replays is what burst i takes, and the stall is how much longer than the
 * median burst the longest takes.  Turns are not bursts; they are another thread's on another core
 * as in the switch, while this one waits: they must not empty its caches.  The first turn's bursts,
 * which meet an engine that nobody has used yet, are left out. */

#include "core_rows.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "rig.h"
#include "timing.h"

#define TURN_MS 50
#define TURN_BURSTS 1024
#define IDLE_S 2
#define STEADY_SESSIONS (4u << 20)
#define WARM_TURNS 120
#define TURNS 60
#define REPLAYS 3

static uint64_t clock_ms;

static uint64_t bench_clock(void)
{
    return clock_ms;
}

struct opening {
    struct rig_thread thread;
    int tcp;
    uint32_t next;
};

static uint64_t both_burst(void *o_)
{
    struct opening *o = o_;

    for (unsigned i = 0; i < FRAME_BURST; i++)
        frame_make(o->thread.frame[i], o->tcp, o->next++, 0, FRAME_SYN);
    return rig_judge_both(&o->thread, 0, FRAME_BURST);
}

void core_new(int tcp)
{
    static struct opening o;
    static struct rig rig;
    struct rig_conf conf = {.n_sessions = 1u << 20};
    double cycles;

    rig_start(&rig, &conf);
    rig_thread_init(&o.thread, &rig, 0);
    o.tcp = tcp;
    cycles = median_of(both_burst, &o, 32);
    rig_want(&o.thread, RIG_A, o.next);
    rig_want(&o.thread, RIG_B, o.next);
    printf("%.2f\n", tsc_hz() / cycles);
    rig_stop(&rig);
}

/* --- with expiry --- */

static void steady_start(struct opening *o, struct rig *rig)
{
    struct rig_conf conf = {.n_sessions = STEADY_SESSIONS,
                            .udp_s = IDLE_S,
                            .n_rules = RIG_RULES,
                            .now_ms = bench_clock};

    clock_ms = 1000000;
    rig_start(rig, &conf);
    rig_thread_init(&o->thread, rig, 0);
    o->next = 0;
}

static uint64_t rule_burst(struct opening *o)
{
    for (unsigned i = 0; i < FRAME_BURST; i++) {
        struct frame_flow w;

        rig_rule_flow(o->next++ % RIG_MAX_RULE_FLOWS, 0, &w);
        frame_of(o->thread.frame[i], &w, 0, 0);
    }
    return rig_judge(&o->thread, RIG_B, MOAT_TO_VM, FRAME_BURST);
}

static uint64_t end_turn(const struct rig *rig)
{
    uint64_t t = __rdtsc();

    clock_ms += TURN_MS;
    moat_engine_turn(rig->engine);
    return __rdtsc() - t;
}

static uint64_t whole_turn(struct opening *o, const struct rig *rig)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < TURN_BURSTS; i++)
        sum += rule_burst(o);
    return sum + end_turn(rig);
}

void core_new_rules(void)
{
    static struct opening o;
    static struct rig rig;
    double t[TURNS], begun = (double)TURNS * TURN_BURSTS * FRAME_BURST;
    uint64_t ended;

    steady_start(&o, &rig);
    for (unsigned i = 0; i < WARM_TURNS; i++)
        whole_turn(&o, &rig);
    ended = rig_counter(&rig, RIG_B, MOAT_C_SESSIONS_EXPIRED);
    for (unsigned i = 0; i < TURNS; i++)
        t[i] = (double)whole_turn(&o, &rig);
    ended = rig_counter(&rig, RIG_B, MOAT_C_SESSIONS_EXPIRED) - ended;
    if (o.thread.refused)
        rig_die("new connections were refused");
    if ((double)ended < begun * .9)
        rig_die("fewer sessions end than begin");
    qsort(t, TURNS, sizeof *t, by_value);
    printf("%.0f\n", TURN_BURSTS * FRAME_BURST * tsc_hz() / t[TURNS / 2]);
    rig_stop(&rig);
}

/* --- stalls --- */

/* The control thread: a turn whenever `asked` is ahead of `done`. */
static struct {
    pthread_t id;
    const struct rig *rig;
    unsigned asked, done; /* atomic */
    bool stop;            /* atomic */
    double cycles;        /* of the last turn */
} control;

static void *control_main(void *unused)
{
    (void)unused;
    while (!__atomic_load_n(&control.stop, __ATOMIC_ACQUIRE)) {
        if (__atomic_load_n(&control.asked, __ATOMIC_ACQUIRE) == control.done) {
            __builtin_ia32_pause();
            continue;
        }
        control.cycles = (double)end_turn(control.rig);
        __atomic_store_n(&control.done, control.done + 1, __ATOMIC_RELEASE);
    }
    return NULL;
}

static double others_turn(void)
{
    unsigned want = control.asked + 1;

    __atomic_store_n(&control.asked, want, __ATOMIC_RELEASE);
    while (__atomic_load_n(&control.done, __ATOMIC_ACQUIRE) != want)
        __builtin_ia32_pause();
    return control.cycles;
}

static void control_start(const struct rig *rig)
{
    control.rig = rig;
    control.stop = false;
    control.asked = control.done = 0;
    rig_thread_create(&control.id, 0, control_main, NULL);
}

static void control_stop(void)
{
    __atomic_store_n(&control.stop, true, __ATOMIC_RELEASE);
    pthread_join(control.id, NULL);
}

static void keep_least(double *least, double t)
{
    if (!*least || t < *least)
        *least = t;
}

static void replay(double *least, double *least_turn)
{
    static struct opening o;
    static struct rig rig;

    rig_forget_tables();
    steady_start(&o, &rig);
    control_start(&rig);
    for (unsigned i = 0; i < WARM_TURNS; i++) {
        for (unsigned j = 0; j < TURN_BURSTS; j++)
            keep_least(&least[i * TURN_BURSTS + j], (double)rule_burst(&o));
        keep_least(&least_turn[i], others_turn());
    }
    control_stop();
    if (o.thread.refused)
        rig_die("new connections were refused");
    rig_stop(&rig);
}

void core_stall(void)
{
    static double all[WARM_TURNS * TURN_BURSTS], least_turn[WARM_TURNS];
    double us = 1e6 / tsc_hz(), *least = all + TURN_BURSTS;
    unsigned n = (WARM_TURNS - 1) * TURN_BURSTS;

    rig_pin(1);
    for (unsigned i = 0; i < REPLAYS; i++)
        replay(all, least_turn);
    qsort(least, n, sizeof *least, by_value);
    qsort(least_turn, WARM_TURNS, sizeof *least_turn, by_value);
    fprintf(stderr,
            "bursts of %u: median %.2f us, p99.9 %.2f us, longest %.2f us; control thread's turn: "
            "median %.0f us, longest %.0f us\n",
            FRAME_BURST, least[n / 2] * us, least[n - n / 1000] * us, least[n - 1] * us,
            least_turn[WARM_TURNS / 2] * us, least_turn[WARM_TURNS - 1] * us);
    printf("%.2f\n", (least[n - 1] - least[n / 2]) * us);
}
