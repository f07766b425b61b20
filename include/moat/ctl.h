/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_CTL_H
#define MOAT_CTL_H 1

/* Messages between the fast path and its local clients (moatd, moatctl).
 *
 * A unix SOCK_SEQPACKET socket, <MOAT_RUNDIR>/moat.ctl, mode 0600, peers of uid
 * 0 only.  Each message is one packet of at most MOAT_CTL_MAX bytes: a
 * moat_ctl_head and a body.  The client asks, the engine answers each request
 * with one message of the same type and `xid`, MOAT_CTL_REPLY set and `status`
 * 0 or a negative errno.  A refused request changes nothing; its reply's body is
 * the reason as text (no NUL).  After MOAT_CTL_SUBSCRIBE the engine also sends
 * MOAT_CTL_EVENT messages on that connection (xid 0); a client that does not
 * read loses events, which are counted, never blocks the engine.
 *
 * Both ends are on one machine and of one version: structs are sent as they are.
 * HELLO comes first and refuses another version. */

#include <stdint.h>

#include "moat/counters.h"
#include "moat/flow.h"
#include "moat/settings.h"

#define MOAT_CTL_VERSION 3
#define MOAT_CTL_MAX (64u << 10)
#define MOAT_CTL_REPLY 0x8000u

#define MOAT_ID_MAX 64    /* vNIC ids, VM names, networks: with the NUL */
#define MOAT_PATH_MAX 108 /* as sun_path */
#define MOAT_FILE_MAX 256
#define MOAT_ADDRS_MAX 16

enum moat_ctl_type {
    MOAT_CTL_HELLO = 1,      /* u32 version -> moat_ctl_hello */
    MOAT_CTL_SLOT_LIST = 2,  /* moat_ctl_list -> moat_ctl_list_reply, moat_slot_info[] */
    MOAT_CTL_PORT_LIST = 3,  /* moat_ctl_list -> moat_ctl_list_reply, moat_port_info[] */
    MOAT_CTL_CLAIM = 4,      /* moat_slot_conf: creates or updates a slot */
    MOAT_CTL_RELEASE = 5,    /* moat_ctl_vnic: forgets slot, sessions, rulesets */
    MOAT_CTL_STATE = 6,      /* moat_ctl_state */
    MOAT_CTL_RULESET = 7,    /* moat_ctl_vnic + a sealed memfd (SCM_RIGHTS) */
    MOAT_CTL_SESSIONS = 8,   /* moat_ctl_sessions -> moat_ctl_sessions_reply, frames */
    MOAT_CTL_IMPORT = 9,     /* moat_ctl_import, frames -> moat_ctl_import_reply */
    MOAT_CTL_COUNTERS = 10,  /* moat_ctl_vnic -> uint64_t[MOAT_N_COUNTERS] */
    MOAT_CTL_RULE_HITS = 11, /* moat_ctl_hits -> moat_ctl_list_reply, moat_rule_hit[] */
    MOAT_CTL_SUBSCRIBE = 12, /* - -> - */
    MOAT_CTL_EVENT = 13,     /* engine only: moat_event */
    MOAT_CTL_HANDED_OVER =
        14, /* moat_ctl_vnic: the destination has the final delta; ends the wait */
    MOAT_CTL_RULESET_GET = 15, /* moat_ctl_vnic -> a sealed memfd with the slot's ruleset */
    MOAT_CTL_FLUSH = 16,       /* moat_ctl_vnic: drops all sessions of the slot */
    MOAT_CTL_TRACE = 17,  /* moat_ctl_trace, moat_trace_insn[]: traces until the connection ends */
    MOAT_CTL_TRACED = 18, /* engine only: moat_traced, bytes of the frame */
    /* moat_ctl_replace -> moat_ctl_replaced: another engine takes over.  The answer comes when it
     * has; all connections end then.  The one request that needs no HELLO and stays as it is in all
     * versions: whoever installed new programs can replace an old engine. */
    MOAT_CTL_REPLACE = 19,
};

struct moat_ctl_head {
    uint16_t type; /* enum moat_ctl_type, maybe with MOAT_CTL_REPLY */
    uint16_t version;
    uint32_t xid;
    uint32_t len; /* of the body */
    int32_t status;
};

/* Life of a slot. */
enum moat_slot_state {
    MOAT_SLOT_FREE = 0,
    MOAT_SLOT_BLOCKED = 1, /* born so: nothing passes */
    MOAT_SLOT_ENROLLING =
        2, /* running VM gets its firewall: mid-stream pick-up, refusals only logged */
    MOAT_SLOT_ACTIVE = 3,   /* filters */
    MOAT_SLOT_ARRIVING = 4, /* packets from the VM wait in its ring, those to it are refused */
    MOAT_SLOT_FROZEN = 5,   /* left the ring here, state is being handed over */
    MOAT_SLOT_DEPARTED = 6, /* tombstone: counts what still comes */
    MOAT_N_SLOT_STATES
};

static inline const char *moat_slot_state_name(unsigned s)
{
    static const char *const names[] = {"free",     "blocked", "enrolling", "active",
                                        "arriving", "frozen",  "departed"};
    return s < MOAT_N_SLOT_STATES ? names[s] : "?";
}

struct moat_ctl_hello {
    uint32_t version;
    uint32_t pid;
    uint32_t n_slots, slots_used, n_ports;
    uint32_t sessions_max, sessions_used;
    uint32_t layout_version;
    uint64_t now_s;     /* the engine's clock: seconds since boot */
    uint64_t started_s; /* when this engine started, same clock */
    uint64_t events_lost;
    uint32_t recovered_slots, recovered_sessions; /* found in the mapping at start */
    uint32_t unclaimed; /* enum moat_fail: what a port without slot gets */
    uint32_t pad;
    char engine[32]; /* version text */
    char mapping[MOAT_PATH_MAX];
    char file[MOAT_FILE_MAX]; /* that the engine was loaded from */
    uint32_t replacements;    /* engines that served before it, since the switch started */
    uint32_t gate_us;         /* how long packets had to wait when it took over */
};

struct moat_ctl_replace {
    char file[MOAT_FILE_MAX]; /* as the switch sees it; empty: the one that it starts with */
};

struct moat_ctl_replaced {
    char engine[32];     /* version of the one that serves now */
    uint32_t prepare_ms; /* until it was ready; the old one served */
    uint32_t gate_us;    /* how long packets had to wait */
    uint32_t tries;      /* to find a moment for it */
    uint32_t pad;
};

struct moat_ctl_vnic {
    char vnic[MOAT_ID_MAX];
};

struct moat_ctl_list {
    uint32_t first; /* index to go on with, 0 to begin */
    uint32_t pad;
};

struct moat_ctl_list_reply {
    uint32_t n;    /* elements that follow */
    uint32_t next; /* ask again with this as `first`; 0: that was all */
};

struct moat_addr {
    uint8_t family; /* 4 or 6 */
    uint8_t plen;   /* 32 or 128: an address; shorter: an allowed prefix */
    uint8_t pad[2];
    uint8_t addr[16];
};

/* What a slot is: sent by CLAIM.  Claiming a vNIC that has a slot updates it and
 * keeps state, sessions and ruleset, but for `path`, which may move. */
struct moat_slot_conf {
    char vnic[MOAT_ID_MAX];    /* id of the vNIC (iface-id), the slot's name */
    char vm[MOAT_ID_MAX];      /* for people */
    char network[MOAT_ID_MAX]; /* for people */
    char path[MOAT_PATH_MAX];  /* vhost-server-path of its port */
    uint8_t mac[6];
    uint8_t n_addrs;
    uint8_t state; /* for a new slot: BLOCKED, ACTIVE, ARRIVING or ENROLLING */
    struct moat_addr addrs[MOAT_ADDRS_MAX]; /* what the VM may speak for; none: any */
    struct moat_settings settings;
    uint64_t epoch;
};

/* Changes a slot's state.  ARRIVING -> ACTIVE takes effect when the VM's rings
 * have started, or at once if they have. */
struct moat_ctl_state {
    char vnic[MOAT_ID_MAX];
    uint8_t state;
    uint8_t precopy; /* 1: a destination is being fed: freeze at the next destroy_device and wait
                      * there for HANDED_OVER up to wait_ms */
    uint8_t pad[2];
    uint32_t wait_ms;
    uint32_t pickup_s; /* TCP sessions that policy permits may start mid-stream for so long */
    uint32_t pad2;
    uint64_t epoch; /* 0: keep */
};

struct moat_slot_info {
    struct moat_slot_conf conf;
    uint8_t state;     /* enum moat_slot_state */
    uint8_t connected; /* a QEMU is connected to the port */
    uint8_t running;   /* its rings have started */
    uint8_t precopy;   /* dirty logging is on */
    uint8_t ready;     /* ARRIVING: opens when the rings start */
    uint8_t has_ruleset;
    uint8_t has_port; /* the switch has a port with this path */
    uint8_t pad;
    uint32_t index;
    uint32_t sessions;      /* live */
    uint32_t half_open;     /* of those: TCP whose handshake is not over */
    uint32_t enroll_left_s; /* ENROLLING: until it enforces; 0: its rings have not started */
    uint32_t n_rules;
    uint32_t serial; /* rises with each ruleset that differs */
    uint64_t generation;
    uint8_t digest[16];
    uint8_t n_learnt; /* anti-spoofing learn-once: addresses that the VM has made its own */
    uint8_t pad2[7];
    struct moat_addr learnt[2];
};

struct moat_port_info {
    char path[MOAT_PATH_MAX];
    uint8_t connected, running, claimed, replugged; /* replugged: deleted and plugged again */
    char vnic[MOAT_ID_MAX];                         /* if claimed */
};

struct moat_ctl_sessions {
    char vnic[MOAT_ID_MAX]; /* empty: of all slots */
    uint32_t cursor;        /* 0 to begin */
    uint32_t pad;
    uint64_t since_s; /* only sessions with a packet at or after this second of now_s; 0: all */
};

struct moat_ctl_sessions_reply {
    uint32_t n;      /* frames that follow; all of one slot */
    uint32_t cursor; /* go on with this; 0: that was all */
    uint64_t now_s;  /* the engine's clock when it answered */
    char vnic[MOAT_ID_MAX];
};

/* Sessions go to an ARRIVING slot only.  A session that is there already is
 * overwritten: the later record wins. */
struct moat_ctl_import {
    char vnic[MOAT_ID_MAX];
    uint32_t n;
    uint32_t same_policy; /* 1: the slot's ruleset is the one that admitted them; 0: judge again */
};

struct moat_ctl_import_reply {
    uint32_t accepted;
    uint32_t refused; /* bad checksum, bad field, table full; the reasons are events */
};

struct moat_ctl_hits {
    char vnic[MOAT_ID_MAX];
    uint32_t first;
    uint32_t pad;
};

struct moat_rule_hit {
    uint32_t rule; /* moat_rule.id; 0: the default */
    uint32_t pad;
    uint64_t hits; /* packets that this rule decided: new sessions and refusals */
};

enum moat_event_type {
    MOAT_EV_PORT = 1,      /* the switch registered a port: path */
    MOAT_EV_CONNECTED = 2, /* QEMU connected */
    MOAT_EV_DISCONNECTED = 3,
    MOAT_EV_RINGS_STARTED = 4, /* new_device */
    MOAT_EV_RINGS_STOPPED = 5, /* destroy_device, when the switch has let go of the device */
    MOAT_EV_PRECOPY = 6,       /* dirty logging: value 1 on, 0 off */
    MOAT_EV_FROZEN = 7,        /* final delta is due; the vhost thread waits for HANDED_OVER */
    MOAT_EV_OPENED = 8, /* ARRIVING -> ACTIVE; value: microseconds the VM's packets were held */
    MOAT_EV_HOLD_EXPIRED = 9,  /* ARRIVING and no state in time; value: hold_ms */
    MOAT_EV_STATE = 10,        /* slot changed state; value: the new one */
    MOAT_EV_PACKET = 11,       /* a logged packet: verdict in value, reason, rule, flow */
    MOAT_EV_QUOTA = 12,        /* a quota was reached: reason */
    MOAT_EV_REFUSED = 13,      /* a bad request or record; text says what */
    MOAT_EV_WAIT_EXPIRED = 14, /* destroy_device went on without HANDED_OVER; value: ms */
    MOAT_EV_REPLUGGED = 15,    /* a port came again: its slot is blocked until claimed */
    MOAT_EV_LEARNT = 16,       /* anti-spoofing learn-once: the VM's address is flow.local */
    MOAT_EV_ENROLLED = 17, /* ENROLLING -> ACTIVE; value: packets that would have been refused */
    MOAT_EV_CUT = 18,      /* quarantine: all sessions were judged again; value: how many ended */
    MOAT_EV_REPLACED = 19, /* another engine took over (text: which); value: microseconds that
                            * packets had to wait */
};

struct moat_event {
    uint64_t seq;     /* rises by one; a gap means loss */
    uint64_t time_us; /* CLOCK_REALTIME */
    uint32_t type;    /* enum moat_event_type */
    uint32_t reason;  /* enum moat_reason */
    uint32_t rule;
    uint32_t frame_len;
    int64_t value;
    uint64_t generation;
    char vnic[MOAT_ID_MAX]; /* empty if the port is not claimed */
    char path[MOAT_PATH_MAX];
    struct moat_flow flow; /* MOAT_EV_PACKET; MOAT_EV_LEARNT: family and local */
    char text[128];
};

/* --- tracing --- */

/* One instruction of classic BPF (struct bpf_insn of libpcap; the same layout).  The
 * filter looks at the frame from its Ethernet header on; a return of 0 is no match. */
struct moat_trace_insn {
    uint16_t code;
    uint8_t jt, jf;
    uint32_t k;
};

#define MOAT_TRACE_INSNS_MAX 512
#define MOAT_TRACE_SNAPLEN_MAX 2048

/* Which verdicts are traced: bits of moat_ctl_trace.which. */
#define MOAT_TRACE_PASSED 0x01
#define MOAT_TRACE_REFUSED 0x02

struct moat_ctl_trace {
    char vnic[MOAT_ID_MAX]; /* empty: all slots */
    uint32_t n_insns;       /* that follow; 0: every packet */
    uint32_t snaplen;       /* bytes of each frame to send along, at most */
    uint32_t which;
    uint32_t pad;
};

/* What decided about a packet. */
enum moat_by {
    MOAT_BY_STATE = 0,     /* the slot's state or a fail mode */
    MOAT_BY_CHECK = 1,     /* parser or anti-spoofing */
    MOAT_BY_SESSION = 2,   /* a session that was there */
    MOAT_BY_RULE = 3,      /* a rule or the default; if it passed, a session may have opened */
    MOAT_BY_RELATED = 4,   /* an ICMP error, by the session of the packet that it quotes */
    MOAT_BY_FRAGMENT = 5,  /* a later fragment, by its datagram */
    MOAT_BY_QUOTA = 6,     /* a rule admits it, a quota does not */
    MOAT_BY_ENROLLING = 7, /* would be refused (reason, rule), but the slot is being enrolled */
    MOAT_N_BY
};

static inline const char *moat_by_name(unsigned by)
{
    static const char *const names[] = {"state",   "check",    "session", "rule",
                                        "related", "fragment", "quota",   "enrolling"};
    return by < MOAT_N_BY ? names[by] : "?";
}

/* One packet as a slot saw it.  The frame's first `cap_len` bytes follow. */
struct moat_traced {
    uint64_t seq;        /* of this trace, rises by one; a gap means loss */
    uint64_t time_us;    /* CLOCK_REALTIME */
    uint64_t generation; /* of the slot's policy; of the session's, if there is one */
    char vnic[MOAT_ID_MAX];
    struct moat_flow flow; /* family 0: no address could be read */
    uint32_t frame_len, cap_len;
    uint32_t rule; /* that decided or admitted the session; 0: the default, or none */
    uint16_t vlan;
    uint8_t verdict; /* MOAT_ALLOW, MOAT_DROP or MOAT_REJECT */
    uint8_t reason;  /* enum moat_reason */
    uint8_t by;      /* enum moat_by */
    uint8_t slot_state;
    uint8_t tcp_flags;
    uint8_t has_session;                /* after this packet; the rest is about it */
    uint8_t session_dir, session_flags; /* MOAT_SES_F_* */
    uint8_t side_state[2];              /* by enum moat_dir */
    uint32_t age_s;
    uint64_t packets[2], bytes[2];
};

#endif /* moat/ctl.h */
