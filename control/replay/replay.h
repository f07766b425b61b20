/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_REPLAY_H
#define MOAT_REPLAY_H 1

/* Judges captured packets offline, by the very filter core that runs in the switch: an engine in
 * private memory, whose clock is that of the packets.
 *
 * One VM is in the middle; each of its vNICs gets a slot with the ruleset and the settings that
 * the policy has for it.  A packet is from a vNIC if its source MAC is the vNIC's, to it if its
 * destination MAC is, and to the first vNIC if it is a broadcast or multicast.  Where no MAC is
 * known (of the vNIC, or because the capture has none), the addresses tell.  What is neither is
 * not judged.
 *
 * The clock follows the packets' time stamps and never goes backwards; a step of more than 30 days
 * counts as 30 days, which is longer than any timer.
 *
 * No I/O.  One replay at a time per process (the engine's clock is a function without an
 * argument), of one thread. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moat/counters.h"
#include "moat/ctl.h"

#include "capture.h"

struct moat_inventory;
struct moat_policy;
struct moat_replay;

#define MOAT_REPLAY_VNICS_MAX 16

struct moat_replay_vnic {
    unsigned vnic; /* in the inventory: whose ruleset */
    const char *id, *vm, *network;
    bool has_mac; /* false: that of the first frame that it sends or gets */
    uint8_t mac[6];
    const struct moat_addr *addrs; /* its own, and those that it may use */
    size_t n_addrs;                /* at most MOAT_ADDRS_MAX */
};

struct moat_replay_conf {
    const struct moat_policy *policy; /* both are not needed any more after create */
    const struct moat_inventory *inventory;
    const struct moat_replay_vnic *vnics;
    size_t n_vnics;
    uint32_t pickup_s; /* permitted TCP sessions may begin mid-stream for so long */
};

/* What the filter answered to a refused packet. */
enum moat_replay_answer { MOAT_ANSWER_NONE, MOAT_ANSWER_RST, MOAT_ANSWER_ICMP, MOAT_N_ANSWERS };

struct moat_replayed {
    bool judged;               /* false: neither from nor to the VM; the rest is not set */
    uint8_t answer;            /* enum moat_replay_answer */
    uint8_t released;          /* fragments that had waited for this packet and passed now */
    struct moat_traced traced; /* time_us, seq and cap_len are the packet's in the capture */
};

/* NULL with the reason in err. */
struct moat_replay *moat_replay_create(const struct moat_replay_conf *, char *err, size_t err_size);
void moat_replay_destroy(struct moat_replay *);

/* Judges the next packet. */
void moat_replay_packet(struct moat_replay *, const struct moat_captured *, struct moat_replayed *);

/* Counters of all slots, summed. */
void moat_replay_counters(struct moat_replay *, uint64_t out[MOAT_N_COUNTERS]);

#endif /* control/replay/replay.h */
