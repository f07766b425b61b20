/* SPDX-License-Identifier: Apache-2.0 */

/* Traffic that is made to hurt, against traffic spread evenly over a million live sessions,
 * at b's slot with RIG_RULES rules.  Readings of the TSC around each burst: the switch would count
 * a burst that was refused whole as idle.
 *
 *   syn-flood  SYNs that the rules admit, each of another connection: the table takes them until
 *              the quota of half-open ones is reached, which it is before the measuring
 *   random     TCP and UDP between random addresses and ports: no rule admits them
 *   fragments  fragments of datagrams that are never complete, each with another name; every other
 *              one a first fragment that the rules admit, the others come before their first
 *   cache      packets of LIVE_CONNS sessions, none before all the others were seen, far apart in
 *              every order that the tables may have */

#include "core_rows.h"

#include <stdio.h>
#include <string.h>

#include "rig.h"
#include "timing.h"

#define LIVE_CONNS 3000000u
#define UNIFORM_CONNS 1000000u
#define HALF_OPEN 65536
#define STRIDE 1048583u /* a prime */
#define WARM_PACKETS (4u * HALF_OPEN)

struct hostile {
    struct rig_thread thread;
    uint32_t next;
    void (*make)(struct hostile *, uint8_t *frame);
};

static uint32_t draw(struct hostile *h)
{
    return next_random(&h->thread.random);
}

static void live_frame(uint8_t *frame, uint32_t c)
{
    struct frame_flow w;

    rig_rule_flow(c, 0, &w);
    frame_of(frame, &w, 0, 0);
}

static void uniform(struct hostile *h, uint8_t *frame)
{
    live_frame(frame, draw(h) % UNIFORM_CONNS);
}

static void cache(struct hostile *h, uint8_t *frame)
{
    h->next = (uint32_t)((h->next + (uint64_t)STRIDE) % LIVE_CONNS);
    live_frame(frame, h->next);
}

static void syn_flood(struct hostile *h, uint8_t *frame)
{
    struct frame_flow w;

    rig_rule_flow(draw(h) % RIG_MAX_RULE_FLOWS, 1, &w);
    frame_of(frame, &w, 0, FRAME_SYN);
}

static void random_tuple(struct hostile *h, uint8_t *frame)
{
    uint32_t ports = draw(h);
    struct frame_flow w = {0x0b000000u | draw(h) >> 8, 0x0a000002u, (uint16_t)(ports >> 16 | 1),
                           (uint16_t)(ports | 1), (int)(draw(h) & 1)};

    frame_of(frame, &w, 0, FRAME_SYN);
}

static void fragment(struct hostile *h, uint8_t *frame)
{
    uint32_t nr = h->next++, later = nr & 1;
    struct frame_flow w;

    rig_rule_flow(draw(h) % RIG_MAX_RULE_FLOWS, 0, &w);
    w.src += nr >> 16 << 16; /* a name is 16 bits and the addresses */
    frame_of(frame, &w, 0, 0);
    put16(frame + 16, 20 + 24); /* 24 bytes of it; the rest is padding */
    put16(frame + 18, nr);
    put16(frame + 20, 0x2000 | (later ? 3 : 0)); /* more follow; in units of 8 bytes */
    put16(frame + 24, 0);
    put16(frame + 24, fold(sum16(0, frame + 14, 20)));
    if (!later)
        put16(frame + 38, 4000); /* of the whole datagram */
}

static uint64_t burst(void *h_)
{
    struct hostile *h = h_;

    for (unsigned i = 0; i < FRAME_BURST; i++)
        h->make(h, h->thread.frame[i]);
    return rig_judge(&h->thread, RIG_B, MOAT_TO_VM, FRAME_BURST);
}

static double measure(struct hostile *h, void (*make)(struct hostile *, uint8_t *))
{
    h->make = make;
    for (unsigned i = 0; i < WARM_PACKETS / FRAME_BURST; i++)
        burst(h);
    return median_of(burst, h, 16);
}

static void open_live(struct hostile *h)
{
    for (uint32_t c = 0; c < LIVE_CONNS; c += FRAME_BURST) {
        for (unsigned i = 0; i < FRAME_BURST; i++)
            live_frame(h->thread.frame[i], c + i);
        rig_judge(&h->thread, RIG_B, MOAT_TO_VM, FRAME_BURST);
    }
    rig_want(&h->thread, RIG_B, LIVE_CONNS);
}

void core_hostile(const char *name)
{
    static const struct {
        const char *name;
        void (*make)(struct hostile *, uint8_t *);
        bool passes;
    } kinds[] = {{"syn-flood", syn_flood, false},
                 {"random", random_tuple, false},
                 {"fragments", fragment, false},
                 {"cache", cache, true}};
    static struct hostile h;
    static struct rig rig;
    struct rig_conf conf = {
        .n_sessions = 4u << 20, .max_half_open = HALF_OPEN, .n_rules = RIG_RULES};
    double even, hurt;
    unsigned k = 0;

    while (strcmp(kinds[k].name, name))
        if (++k == sizeof kinds / sizeof *kinds)
            rig_die("hostile syn-flood|random|fragments|cache");
    rig_start(&rig, &conf);
    rig_thread_init(&h.thread, &rig, 0);
    open_live(&h);
    even = measure(&h, uniform);
    rig_want(&h.thread, RIG_B, LIVE_CONNS);
    hurt = measure(&h, kinds[k].make);
    if (kinds[k].passes != !h.thread.refused)
        rig_die(kinds[k].passes ? "packets of live sessions were refused"
                                : "nothing of it was refused");
    printf("%.2f %.2f\n", hurt, even);
    rig_stop(&rig);
}
