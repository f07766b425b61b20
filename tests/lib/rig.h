/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_TESTS_RIG_H
#define MOAT_TESTS_RIG_H 1

/* A filter core with a fake clock and three VMs in one network, for tests that push
 * packets through it:
 *
 *   slot 0  "a"  02:00:00:00:00:01  10.0.0.1  2001:db8::1
 *   slot 1  "b"  02:00:00:00:00:02  10.0.0.2  2001:db8::2
 *   slot 2  "c"  02:00:00:00:00:03  10.0.0.3  2001:db8::3
 *
 * Policy is written in the policy language and compiled by the policy library. Every
 * call checks what must not fail (ck_assert). */

#include <stdint.h>
#include <string.h>

#include "datapath/engine.h"
#include "datapath/handover.h"
#include "datapath/pipe.h"
#include "datapath/slot.h"
#include "policy/policy.h"

#define RIG_SLOTS 3

struct rig {
    struct moat_engine *e;
    struct moat_port *port[RIG_SLOTS];
    struct moat_inventory *inv;
    uint64_t generation;
};

extern uint64_t rig_clock_ms; /* starts at 1000 s */

extern const char *const rig_vnic[RIG_SLOTS];
extern const uint8_t rig_mac[RIG_SLOTS][6];
extern const uint8_t rig_ip4[RIG_SLOTS][4];
extern const uint8_t rig_ip6[RIG_SLOTS][16];

/* mapping NULL: private memory.  Ports are registered and running, no slot is claimed. */
void rig_create(struct rig *, const char *mapping);
void rig_create_sized(struct rig *, const char *mapping, uint32_t n_sessions);
void rig_destroy(struct rig *);

/* Another engine over the same mapping (or, by records, over another of n_sessions) takes this
 * one's place; this one is destroyed.  rig_successor() alone: it is prepared, with `offer` of the
 * one that serves. */
void rig_exchange(struct rig *, bool by_records, uint32_t n_sessions);
struct moat_engine *rig_successor(struct rig *, struct moat_handover *offer, bool by_records,
                                  uint32_t n_sessions);
void rig_succeed(struct rig *, struct moat_engine *); /* it has taken over */

/* The slot's configuration as the agent would send it. */
void rig_conf(unsigned slot, enum moat_slot_state, struct moat_slot_conf *);
void rig_claim(struct rig *, unsigned slot, enum moat_slot_state);

/* Claims again, with other settings. */
void rig_settings(struct rig *, unsigned slot, const struct moat_settings *);

/* Compiles for the slot and publishes.  Each call is a new generation. */
void rig_publish(struct rig *, unsigned slot, const char *policy);

/* All three slots active under one policy. */
void rig_start(struct rig *, const char *mapping, const char *policy);

/* A frame as the hook brings it: nothing else of it is set, and what is there is rubbish. */
static inline struct moat_pkt rig_pkt(const uint8_t *data, uint32_t len, uint32_t total)
{
    struct moat_pkt p;

    memset(&p, 0xa5, sizeof p);
    p.data = data;
    p.len = len;
    p.total = total;
    return p;
}

/* One frame; true if it passes.  *reason (may be NULL) is why not. */
bool rig_push(struct rig *, unsigned slot, enum moat_dir, const uint8_t *frame, uint32_t len,
              enum moat_reason *reason);

/* The same through two slots, as between VMs of one host. */
bool rig_between(struct rig *, unsigned from, unsigned to, const uint8_t *frame, uint32_t len);

/* What the core has injected (answers, released fragments) since the last call of rig_forget(). */
struct rig_injected {
    struct moat_port *port;
    enum moat_dir dir;
    uint32_t len;
    uint8_t frame[2048];
};
#define RIG_INJECTED 16
extern struct rig_injected rig_injected[RIG_INJECTED];
extern unsigned rig_n_injected; /* may be more than are kept */
void rig_forget(void);

/* Time passes, and the engine has its turns meanwhile, each 50 ms. */
void rig_pass_time(struct rig *, uint64_t ms);

/* The next event of this type, dropping all before it.  False: there is none. */
bool rig_event(struct rig *, enum moat_event_type, struct moat_event *);

uint64_t rig_counter(struct rig *, unsigned slot, unsigned counter);

#endif /* tests/lib/rig.h */
