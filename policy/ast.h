/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_POLICY_AST_H
#define MOAT_POLICY_AST_H 1

/* A policy as it is written.  Everything lives in the policy's arena and goes
 * with it.  Once moat_policy_parse() has returned it, nothing changes and every
 * reference is resolved. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "policy/diag.h"

/* --- Memory ----------------------------------------------------------------- */

struct moat_arena {
    struct moat_arena_chunk *chunks;
    size_t used, limit;
    bool failed; /* some allocation did; its result was NULL */
};

void *moat_arena_alloc(struct moat_arena *, size_t size); /* zeroed */
char *moat_arena_strndup(struct moat_arena *, const char *, size_t len);
/* Room for element n of array v; returns the array, maybe moved, or NULL. */
void *moat_arena_grow(struct moat_arena *, void *v, uint32_t n, uint32_t *cap, size_t element);
void moat_arena_destroy(struct moat_arena *);

/* --- Comments ---------------------------------------------------------------- */

/* Comments and blank lines around a statement.  A line is what follows the `#`;
 * NULL is a blank line. */
struct ast_notes {
    const char **lines; /* before it */
    uint32_t n, cap;
    const char *trail; /* on its (first) line */
};

/* --- Groups ------------------------------------------------------------------- */

enum ast_term_kind {
    /* Words of the language; moat_ast_builtin_name() */
    TERM_ANY,
    TERM_VMS,
    TERM_OUTSIDE,
    TERM_UNKNOWN,
    TERM_GATEWAY,
    TERM_ROUTER,
    TERM_DHCP,
    TERM_METADATA,
    TERM_MULTICAST,
    N_BUILTIN_TERMS,
    /* With an argument */
    TERM_LABELS = N_BUILTIN_TERMS, /* labels: all of them */
    TERM_VM_NAME,                  /* text */
    TERM_VM_UUID,                  /* text, lower case */
    TERM_ADDRESSES,                /* ranges */
    TERM_GROUP,                    /* text, ref */
};

struct ast_label {
    const char *key, *value;
};

/* Addresses lo to hi, both included, network order; IPv4 in the first 4 bytes. */
struct ast_range {
    uint8_t family; /* MOAT_FAM_IP4, MOAT_FAM_IP6 */
    uint8_t plen;   /* how it was written; AST_SPAN: lo-hi */
    uint8_t lo[16], hi[16];
};
#define AST_SPAN 255

struct ast_term {
    enum ast_term_kind kind;
    struct moat_pos pos;
    uint32_t ref; /* TERM_GROUP: index of the group */
    const char *text;
    union {
        struct ast_label *labels;
        struct ast_range *ranges;
    };
    uint32_t n, cap;
};

struct ast_terms {
    struct ast_term *v;
    uint32_t n, cap;
};

/* Whatever a term of `with` matches, unless a term of `except` matches it. */
struct ast_expr {
    struct ast_terms with, except;
};

struct ast_group {
    const char *name;
    struct moat_pos pos;
    struct ast_expr expr;
    struct ast_notes notes;
    uint32_t depth;
    bool broken; /* did not parse: no further complaints */
};

/* --- Services ------------------------------------------------------------------ */

enum ast_item_kind {
    ITEM_PORTS, /* proto with ports: tcp, udp, sctp */
    ITEM_PROTO, /* proto by number */
    ITEM_ICMP,
    ITEM_ICMP6,
    ITEM_ARP,
    ITEM_SERVICE, /* name, ref */
};

struct ast_item {
    enum ast_item_kind kind;
    struct moat_pos pos;
    uint32_t ref;
    const char *name;
    uint8_t proto;
    bool has_dport, has_sport;   /* ICMP: type, code */
    uint16_t dport_lo, dport_hi; /* 0 to 65535 if there is none */
    uint16_t sport_lo, sport_hi;
};

struct ast_items {
    struct ast_item *v;
    uint32_t n, cap;
};

struct ast_service {
    const char *name;
    struct moat_pos pos;
    struct ast_items items;
    struct ast_notes notes;
    uint32_t depth;
    bool broken;
};

/* --- Rules ---------------------------------------------------------------------- */

struct ast_rule {
    struct moat_pos pos;
    const char *name; /* NULL: none */
    uint8_t action;   /* enum moat_verdict */
    bool log, loose;
    uint32_t tier;
    struct ast_expr from, to;
    struct ast_items services; /* none: IPv4 and IPv6, whatever it is */
    struct ast_notes notes;
};

struct ast_tier {
    const char *name;
    struct moat_pos pos;
    uint32_t first, n;            /* in rules[] */
    struct ast_notes notes, tail; /* tail: before the closing brace */
    bool base;
    bool builtin; /* from the library, not from the text */
};

/* --- Settings -------------------------------------------------------------------- */

enum ast_setting_key {
    SETTING_ON_MISSING_POLICY,
    SETTING_ON_MISSING_STATE,
    SETTING_ON_UNPROTECTED_HOST,
    SETTING_TCP,
    SETTING_TRANSFER_SESSIONS,
    SETTING_ANTI_SPOOFING,
    SETTING_VLAN,
    SETTING_RA_GUARD,
    SETTING_DHCP_GUARD,
    SETTING_ETHERTYPES,
    SETTING_HOLD,
    SETTING_ENROLL,
    SETTING_MAX_SESSIONS,
    SETTING_MAX_HALF_OPEN,
    SETTING_MAX_NEW_SESSIONS,
    SETTING_MAX_FRAGMENTS,
    SETTING_MAX_LOGS,
    SETTING_TIMERS, /* by enum moat_timer */
    N_SETTINGS = SETTING_TIMERS + MOAT_N_TIMERS
};

struct ast_setting {
    enum ast_setting_key key;
    struct moat_pos pos;
    uint32_t value;    /* as in struct moat_settings; a time: ms; ethertypes: how many */
    uint32_t pickup_s; /* SETTING_ON_MISSING_STATE: 0: not given */
    uint16_t ethertypes[MOAT_ETHERTYPES_MAX];
    struct ast_notes notes;
};

struct ast_settings {
    struct moat_pos pos;
    struct ast_expr vms;
    struct ast_setting *v;
    uint32_t n, cap;
    struct ast_notes notes, tail;
};

/* --- The policy -------------------------------------------------------------------- */

enum ast_stmt_kind {
    STMT_POLICY,
    STMT_GROUP,
    STMT_SERVICE,
    STMT_TIER,
    STMT_DEFAULT,
    STMT_SETTINGS,
};

struct ast_stmt {
    enum ast_stmt_kind kind;
    uint32_t index;
};

struct moat_policy {
    struct moat_arena arena;
    const char *file;
    const char *name; /* NULL until the `policy` statement */

    struct ast_stmt *stmts; /* in the order of the text */
    struct ast_group *groups;
    struct ast_service *services;
    struct ast_rule *rules; /* in the order of judgement: rule id is index + 1 */
    struct ast_tier *tiers; /* the last one is the base tier */
    struct ast_settings *settings;
    uint32_t n_stmts, cap_stmts, n_groups, cap_groups, n_services, cap_services;
    uint32_t n_rules, cap_rules, n_tiers, cap_tiers, n_settings, cap_settings;

    uint32_t *group_index, *service_index; /* sorted by name */

    bool has_default, default_log;
    uint8_t default_action;
    struct moat_pos policy_pos, default_pos;
    struct ast_notes policy_notes, default_notes, tail;
};

/* --- Words ---------------------------------------------------------------------------- */

/* NULL if it is none. */
const char *moat_ast_builtin_name(enum ast_term_kind);
const char *moat_ast_action_name(unsigned verdict);
const char *moat_ast_setting_name(enum ast_setting_key);
bool moat_ast_reserved(const char *word);

/* A name of a type (and code) of ICMP or ICMPv6.  code -1: any. */
struct ast_icmp_name {
    const char *name;
    uint8_t v6, type;
    int16_t code;
};
extern const struct ast_icmp_name moat_ast_icmp_names[];
extern const unsigned moat_ast_n_icmp_names;

/* -1: none of that name. */
int64_t moat_ast_find_group(const struct moat_policy *, const char *name);
int64_t moat_ast_find_service(const struct moat_policy *, const char *name);

/* Whether a label list, name or UUID fits a VM is for the reader to find out; these
 * kinds are about VMs, the others about addresses. */
static inline bool moat_ast_term_is_vm(enum ast_term_kind kind)
{
    return kind == TERM_VMS || kind == TERM_LABELS || kind == TERM_VM_NAME || kind == TERM_VM_UUID;
}

#endif /* policy/ast.h */
