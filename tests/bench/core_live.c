/* SPDX-License-Identifier: Apache-2.0 */

/* Live sessions in random order, in bursts of 32.
 *
 * Both slots: packets from a to b, as between two VMs of one host.  One slot: b's, a burst to
 * the VM and a burst from it by turns, each with packets of 32 connections drawn anew. */

#include "core_rows.h"

#include <stdio.h>

#include "rig.h"
#include "timing.h"

struct live {
    struct rig_thread thread;
    int tcp, back;
    uint32_t n_conns;
};

static void draw(struct live *l)
{
    for (unsigned i = 0; i < FRAME_BURST; i++)
        frame_make(l->thread.frame[i], l->tcp, next_random(&l->thread.random) % l->n_conns, l->back,
                   FRAME_ACK);
}

static uint64_t both_burst(void *l_)
{
    struct live *l = l_;

    draw(l);
    return rig_judge_both(&l->thread, 0, FRAME_BURST);
}

static uint64_t one_slot_burst(void *l_)
{
    struct live *l = l_;
    uint64_t t;

    draw(l);
    t = rig_judge(&l->thread, RIG_B, l->back ? MOAT_FROM_VM : MOAT_TO_VM, FRAME_BURST);
    l->back = !l->back;
    return t;
}

static void measure(int tcp, uint32_t n_conns, bool both)
{
    static struct live l;
    static struct rig rig;
    uint64_t (*burst)(void *) = both ? both_burst : one_slot_burst;
    struct rig_conf conf = {.n_sessions = rig_room((uint64_t)n_conns * (both ? 2 : 1) + 1024)};
    double result;

    rig_start(&rig, &conf);
    rig_thread_init(&l.thread, &rig, 0);
    l.tcp = tcp;
    l.n_conns = n_conns;
    rig_open(&l.thread, tcp, 0, n_conns, both);
    median_of(burst, &l, 4); /* warm */
    result = median_of(burst, &l, CHUNK_BURSTS);
    rig_want(&l.thread, RIG_B, n_conns);
    if (both)
        rig_want(&l.thread, RIG_A, n_conns);
    printf("%.2f\n", result);
    rig_stop(&rig);
}

void core_established(int tcp, uint32_t n_conns)
{
    measure(tcp, n_conns, true);
}

void core_one_slot(int tcp, uint32_t n_conns)
{
    measure(tcp, n_conns, false);
}
