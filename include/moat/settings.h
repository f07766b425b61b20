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

/* What a VM's source MAC, ARP, ND and IP may be. */
enum moat_spoof {
    MOAT_SPOOF_STRICT = 0, /* the vNIC's own; no address in the inventory: any IP */
    MOAT_SPOOF_OFF = 1,
    MOAT_SPOOF_LEARN = 2, /* the MAC is the vNIC's; the first address of each family that the VM
                           * uses becomes its own, beside those of the inventory */
};

/* What 802.1Q and 802.1ad tags get.  Either way the packet behind them is judged. */
enum moat_vlan {
    MOAT_VLAN_BLOCK = 0,   /* tagged frames are refused; priority tags (VLAN 0) are not */
    MOAT_VLAN_INSPECT = 1, /* up to two tags; a session belongs to its outer VLAN */
};

/* Idle timers, by what the session has seen.  Names and defaults (seconds) are those of
 * NSX's session timers.  Append only: a VM's own values travel by index. */
#define MOAT_TIMERS(X)                                                                             \
    X(TCP_FIRST, "tcp-first", 120)                                                                 \
    X(TCP_OPENING, "tcp-opening", 30)                                                              \
    X(TCP_ESTABLISHED, "tcp-established", 43200)                                                   \
    X(TCP_CLOSING, "tcp-closing", 120)                                                             \
    X(TCP_FIN_WAIT, "tcp-fin-wait", 45)                                                            \
    X(TCP_CLOSED, "tcp-closed", 20)                                                                \
    X(UDP_FIRST, "udp-first", 60)                                                                  \
    X(UDP_SINGLE, "udp-single", 30)                                                                \
    X(UDP_MULTIPLE, "udp-multiple", 60)                                                            \
    X(ICMP, "icmp", 20)                                                                            \
    X(ICMP_ERROR, "icmp-error", 10)                                                                \
    X(OTHER_FIRST, "other-first", 60)                                                              \
    X(OTHER_SINGLE, "other-single", 30)                                                            \
    X(OTHER_MULTIPLE, "other-multiple", 60)

enum moat_timer {
#define X(SYM, NAME, SECONDS) MOAT_T_##SYM,
    MOAT_TIMERS(X)
#undef X
        MOAT_N_TIMERS
};

#define MOAT_TIMER_MAX (7u * 86400) /* seconds; what a VM may set a timer to, from 1 */
#define MOAT_ETHERTYPES_MAX 4
#define MOAT_PICKUP_MAX 86400u /* seconds */
#define MOAT_HOLD_MAX 60000u   /* ms */
#define MOAT_ENROLL_MAX 3600u  /* seconds */

struct moat_settings {
    uint8_t on_missing_policy;   /* enum moat_fail: block or allow */
    uint8_t on_missing_state;    /* enum moat_fail */
    uint8_t on_unprotected_host; /* enum moat_fail */
    uint8_t tcp_loose;           /* 0: a session starts with SYN; 1: mid-stream too */
    uint8_t spoof;               /* enum moat_spoof */
    uint8_t transfer_sessions;   /* 0: sessions stay behind at a migration */
    uint8_t quarantine; /* 1: base tier only: no policy names this VM, or an operator said so */
    uint8_t vlan;       /* enum moat_vlan */
    uint8_t ra_guard;   /* 1: the VM sends no router advertisements or redirects */
    uint8_t dhcp_guard; /* 1: the VM sends nothing that only a DHCP server sends */
    uint8_t n_ethertypes;
    uint8_t pad;
    uint16_t ethertypes[MOAT_ETHERTYPES_MAX]; /* besides IPv4, IPv6, ARP: pass both ways unjudged */
    uint32_t pickup_s;                        /* how long `pickup` lasts */
    uint32_t hold_ms;  /* how long an arriving VM's packets wait for its state */
    uint32_t enroll_s; /* a VM that runs when it gets its first slot is enrolled for so long */
    /* Quotas of this vNIC.  0: the engine's default (datapath/slot.h). */
    uint32_t max_sessions;
    uint32_t max_half_open;         /* TCP sessions whose handshake is not over */
    uint32_t max_new;               /* new sessions a second */
    uint32_t max_fragments;         /* datagrams whose fragments are under way */
    uint32_t max_logs;              /* packets logged a second */
    uint32_t timers[MOAT_N_TIMERS]; /* seconds by enum moat_timer; 0: the default */
    uint32_t reserved[4];
};

_Static_assert(sizeof(struct moat_settings) == 124, "part of the control protocol");

static inline void moat_settings_init(struct moat_settings *s)
{
    memset(s, 0, sizeof *s);
    s->transfer_sessions = 1;
    s->ra_guard = s->dhcp_guard = 1;
    s->pickup_s = 120;
    s->hold_ms = 1000;
}

/* Whether `ethertypes` may not hold this: the length of an 802.3 frame, or the type of what has
 * rules of its own (IPv4, ARP, RARP, IPv6) or what others hide behind (tags). */
static inline int moat_ethertype_is_judged(uint32_t type)
{
    return type < 0x0600 || type > 0xffff || type == 0x0800 || type == 0x0806 || type == 0x8035 ||
           type == 0x86dd || type == 0x8100 || type == 0x88a8 || type == 0x9100 || type == 0x9200 ||
           type == 0x9300;
}

static inline const char *moat_timer_name(unsigned t)
{
    static const char *const names[] = {
#define X(SYM, NAME, SECONDS) NAME,
        MOAT_TIMERS(X)
#undef X
    };
    return t < MOAT_N_TIMERS ? names[t] : "?";
}

static inline uint32_t moat_timer_default(unsigned t)
{
    static const uint32_t seconds[] = {
#define X(SYM, NAME, SECONDS) SECONDS,
        MOAT_TIMERS(X)
#undef X
    };
    return t < MOAT_N_TIMERS ? seconds[t] : 0;
}

static inline const char *moat_spoof_name(unsigned s)
{
    static const char *const names[] = {"strict", "off", "learn-once"};
    return s < 3 ? names[s] : "?";
}

static inline const char *moat_vlan_name(unsigned v)
{
    static const char *const names[] = {"block", "inspect"};
    return v < 2 ? names[v] : "?";
}

static inline const char *moat_fail_name(unsigned f)
{
    static const char *const names[] = {"block", "allow", "pickup"};
    return f < 3 ? names[f] : "?";
}

#endif /* moat/settings.h */
