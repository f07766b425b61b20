/* SPDX-License-Identifier: Apache-2.0 */

/* What a table costs when it is full: everything that the process has mapped since before the
 * engine was made (the tables' file with its hugepages, heap, whatever else), by the sessions
 * that went in until one was refused.  And what ageing costs when nothing is over. */

#include "core_rows.h"

#include <stdio.h>
#include <unistd.h>

#include "rig.h"
#include "timing.h"

#define MEMORY_SESSIONS (4u << 20)
#define TURN_HZ 20 /* of the control thread (main.c) */
#define FULL_ROUNDS 2

/* Bytes of address space.  Reserves nothing that it does not count. */
static uint64_t mapped(void)
{
    unsigned long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    if (!f || fscanf(f, "%llu", &pages) != 1)
        rig_die("/proc/self/statm cannot be read");
    fclose(f);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Connections to b until not one of a burst finds room; how many did. */
static uint32_t fill(struct rig_thread *t, int ip6, uint32_t most)
{
    t->len = ip6 ? FRAME6 : FRAME;
    for (uint32_t c = 0; c < most; c += FRAME_BURST) {
        uint64_t refused = t->refused;

        for (unsigned i = 0; i < FRAME_BURST; i++)
            if (ip6)
                frame_make6(t->frame[i], c + i, 0);
            else
                frame_make(t->frame[i], 0, c + i, 0, 0);
        rig_judge(t, RIG_B, MOAT_TO_VM, FRAME_BURST);
        if (t->refused - refused == FRAME_BURST)
            break;
    }
    return rig_sessions(t->rig, RIG_B);
}

void core_memory(int ip6)
{
    static struct rig_thread t;
    static struct rig rig;
    struct rig_conf conf = {.n_sessions = MEMORY_SESSIONS};
    uint64_t before = mapped(), bytes;
    uint32_t n;

    rig_start(&rig, &conf);
    rig_thread_init(&t, &rig, 0);
    n = fill(&t, ip6, FRAMES_MAX_CONNS);
    bytes = mapped() - before;
    if (!n || !t.refused)
        rig_die("the table does not fill");
    printf("%.2f\n", (double)bytes / n);
    rig_stop(&rig);
}

void core_capacity(uint32_t n_sessions)
{
    static struct rig_thread t;
    static struct rig rig;
    struct rig_conf conf = {.n_sessions = n_sessions};
    uint32_t n;

    rig_start(&rig, &conf);
    rig_thread_init(&t, &rig, 0);
    n = fill(&t, 0, FRAMES_MAX_CONNS);
    printf("%u\n", n);
    rig_stop(&rig);
}

/* --- ageing --- */

static uint64_t turn(const struct rig *rig)
{
    uint64_t t = __rdtsc();

    moat_engine_turn(rig->engine);
    return __rdtsc() - t;
}

/* The share of one core's cycles, in per cent.  Every session is looked at FULL_ROUNDS times or
 * so; the median turn stands for all. */
void core_ageing(uint32_t n_conns)
{
    static struct rig_thread t;
    static double turns[FULL_ROUNDS * 64];
    static struct rig rig;
    struct rig_conf conf = {.n_sessions = rig_room((uint64_t)n_conns + 1024)};
    unsigned n = sizeof turns / sizeof *turns;

    rig_start(&rig, &conf);
    rig_thread_init(&t, &rig, 0);
    rig_open(&t, 0, 0, n_conns, false);
    for (unsigned i = 0; i < n; i++)
        turns[i] = (double)turn(&rig);
    rig_want(&t, RIG_B, n_conns);
    qsort(turns, n, sizeof *turns, by_value);
    printf("%.3f\n", 100 * turns[n / 2] * TURN_HZ / tsc_hz());
    rig_stop(&rig);
}
