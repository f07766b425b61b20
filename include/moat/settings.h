/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_SETTINGS_H
#define MOAT_SETTINGS_H 1

/* Settings of one VM.  policy/ derives them from the policy text, the agent
 * hands them to the fast path with the slot and to the next host with a
 * migration.  Fixed-width and free of pointers: it is part of the control
 * protocol, of the mapping and of the hand-over. */

#include <stdint.h>
#include <string.h>

/* What a danger gets.  `pickup` is the bounded middle: connections that policy
 * permits are picked up mid-stream for `pickup_s` seconds, then block. */
enum moat_fail {
    MOAT_FAIL_BLOCK = 0,
    MOAT_FAIL_ALLOW = 1,
    MOAT_FAIL_PICKUP = 2,
};

enum moat_spoof {
    MOAT_SPOOF_STRICT = 0, /* source MAC, ARP, ND and IP must be the vNIC's */
    MOAT_SPOOF_OFF = 1,
};

struct moat_settings {
    uint8_t on_missing_policy;   /* enum moat_fail: block or allow */
    uint8_t on_missing_state;    /* enum moat_fail */
    uint8_t on_unprotected_host; /* enum moat_fail */
    uint8_t tcp_loose;           /* 0: a session starts with SYN; 1: mid-stream too */
    uint8_t spoof;               /* enum moat_spoof */
    uint8_t transfer_sessions;   /* 0: sessions stay behind at a migration */
    uint8_t quarantine;          /* 1: no policy names this VM; base tier only */
    uint8_t pad;
    uint32_t pickup_s;     /* how long `pickup` lasts */
    uint32_t hold_ms;      /* how long an arriving VM's packets wait for its state */
    uint32_t max_sessions; /* quota of this vNIC; 0: the engine's default */
    uint32_t reserved[4];
};

_Static_assert(sizeof(struct moat_settings) == 36, "part of the control protocol");

static inline void moat_settings_init(struct moat_settings *s)
{
    memset(s, 0, sizeof *s);
    s->transfer_sessions = 1;
    s->pickup_s = 120;
    s->hold_ms = 1000;
}

static inline const char *moat_fail_name(unsigned f)
{
    static const char *const names[] = {"block", "allow", "pickup"};
    return f < 3 ? names[f] : "?";
}

#endif /* moat/settings.h */
