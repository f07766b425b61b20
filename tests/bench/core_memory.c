/* SPDX-License-Identifier: Apache-2.0 */

/* What a table costs when it is full: all memory that the process holds more than before the
 * engine was made (the tables' file with its hugepages, heap, whatever else), by the sessions
 * that went in until one was refused.  And what ageing costs when nothing is over. */

#include "core_rows.h"

#include <stdio.h>

#include "rig.h"
#include "timing.h"

#define MEMORY_SESSIONS (16u << 20)
#define SMALL_SESSIONS (1u << 16)
#define TURN_HZ 20 /* of the control thread (main.c) */
#define FULL_ROUNDS 2

/* Bytes of memory that the process holds, hugepages and all. */
static uint64_t held(void)
{
    static const char *const names[] = {"Rss: %llu", "Shared_Hugetlb: %llu",
                                        "Private_Hugetlb: %llu"};
    unsigned long long kib, sum = 0;
    FILE *f = fopen("/proc/self/smaps_rollup", "r");
    char line[128];

    if (!f)
        rig_die("/proc/self/smaps_rollup cannot be read");
    while (fgets(line, sizeof line, f))
        for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
            if (sscanf(line, names[i], &kib) == 1)
                sum += kib;
    fclose(f);
    return sum * 1024;
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

/* A full table of so many; bytes a session. */
static double cost(int ip6, uint32_t n_sessions)
{
    static struct rig_thread t;
    static struct rig rig;
    /* A table for this family alone: none at all cannot be said. */
    struct rig_conf conf = {.n_sessions = n_sessions, .n_sessions6 = ip6 ? n_sessions : 1};
    uint64_t before = held(), bytes;
    uint32_t n;

    rig_start(&rig, &conf);
    rig_thread_init(&t, &rig, 0);
    n = fill(&t, ip6, FRAMES_MAX_CONNS);
    bytes = held() - before;
    if (!n || !t.refused)
        rig_die("the table does not fill");
    rig_stop(&rig);
    return (double)bytes / n;
}

/* The first, small one brings in the program's own pages, which are nobody's sessions. */
void core_memory(int ip6)
{
    cost(ip6, SMALL_SESSIONS);
    rig_forget_tables();
    printf("%.2f\n", cost(ip6, MEMORY_SESSIONS));
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
