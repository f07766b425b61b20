/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_POLICY_H
#define MOAT_POLICY_H 1

/* The policy library: text in, rulesets, settings or a diagnosis out.
 *
 * Pure: no I/O, threads, clock or globals.  A policy does not change after it is
 * built, an inventory only by its owner's calls; any number of threads may read them.  Text,
 * file names and the inventory are taken for hostile and are copied.
 *
 * Functions return 0 or a negative errno, or a pointer and NULL.  Where a
 * `struct moat_diags *` is taken, NULL means that nobody wants to know. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moat/ctl.h" /* struct moat_addr */
#include "moat/flow.h"
#include "moat/ruleset.h"
#include "moat/settings.h"

/* Limits.  What exceeds one is refused, never cut. */
#define MOAT_POLICY_MAX_TEXT (1u << 20)
#define MOAT_POLICY_MAX_RULES 10000
#define MOAT_POLICY_MAX_TIERS 64
#define MOAT_POLICY_MAX_GROUPS 4096 /* and services, and settings blocks */
#define MOAT_POLICY_MAX_LIST 4096   /* items of one list */
#define MOAT_POLICY_MAX_DEPTH 16    /* groups within groups */
#define MOAT_POLICY_MAX_NAME 64     /* names of groups, services, tiers, rules: with the NUL */
#define MOAT_POLICY_MAX_STRING 256  /* names of VMs, labels: with the NUL */
#define MOAT_POLICY_MAX_DIAGS 100
#define MOAT_POLICY_MAX_MEMORY (64u << 20) /* of one parsed policy, in bytes */

/* --- Diagnosis ------------------------------------------------------------ */

enum moat_severity {
    MOAT_DIAG_WARNING,
    MOAT_DIAG_ERROR,
};

struct moat_diag {
    enum moat_severity severity;
    unsigned line, column; /* from 1; 0: the file as a whole */
    const char *file, *message;
    const char *hint; /* what to do about it, or NULL */
};

struct moat_diags;

struct moat_diags *moat_diags_create(void); /* NULL: no memory */
void moat_diags_destroy(struct moat_diags *);
unsigned moat_diags_count(const struct moat_diags *);
unsigned moat_diags_errors(const struct moat_diags *); /* how many of them are errors */
/* i < count.  Valid until destroy or the next call that adds to the list. */
const struct moat_diag *moat_diags_get(const struct moat_diags *, unsigned i);
/* "file:line:column: error: message\n    hint: ...\n" for each, in order of
 * position.  The caller frees it; NULL: no memory. */
char *moat_diags_text(const struct moat_diags *);

/* --- Inventory: what rules speak about ------------------------------------ */

/* An address belongs to an identity within its network.  In it, an address
 * belongs to the vNIC with the longest prefix that covers it (to each of them,
 * if several have that very prefix), and the IPv6 link-local address made from
 * its MAC belongs to each vNIC.  A prefix of length 0 names no one. */
struct moat_inventory;

struct moat_network_spec {
    const char *name;
    const struct moat_addr *subnets; /* prefixes */
    size_t n_subnets;
    const struct moat_addr *gateways, *dhcp_servers, *metadata_servers, *routers; /* addresses */
    size_t n_gateways, n_dhcp_servers, n_metadata_servers, n_routers;
};

struct moat_label {
    const char *key, *value;
};

struct moat_vm_spec {
    const char *uuid; /* 8-4-4-4-12 hex digits */
    const char *name; /* need not be unique */
    const struct moat_label *labels;
    size_t n_labels;
    bool quarantine; /* an operator's word, whatever the policy says */
};

struct moat_vnic_spec {
    const char *id;
    unsigned vm, network; /* as returned by add_vm, add_network */
    uint8_t mac[6];
    const struct moat_addr *addrs;
    size_t n_addrs;
};

struct moat_inventory *moat_inventory_create(void);
void moat_inventory_destroy(struct moat_inventory *);

/* Each copies, and returns the index of the new element (from 0), or -EINVAL (a
 * bad string, address or index), -EEXIST (network name, VM UUID or vNIC id are
 * there already), -E2BIG or -ENOMEM.  A refused call changes nothing. */
int moat_inventory_add_network(struct moat_inventory *, const struct moat_network_spec *);
int moat_inventory_add_vm(struct moat_inventory *, const struct moat_vm_spec *);
int moat_inventory_add_vnic(struct moat_inventory *, const struct moat_vnic_spec *);

/* The one thing that changes in an inventory: an operator's word counts even while new rows
 * cannot be read.  vm < n_vms; nobody may be reading. */
void moat_inventory_set_quarantine(struct moat_inventory *, unsigned vm, bool quarantine);

/* Index or -ENOENT. */
int moat_inventory_find_network(const struct moat_inventory *, const char *name);
int moat_inventory_find_vm(const struct moat_inventory *, const char *uuid);
int moat_inventory_find_vnic(const struct moat_inventory *, const char *id);
unsigned moat_inventory_n_vms(const struct moat_inventory *);
unsigned moat_inventory_n_vnics(const struct moat_inventory *);
unsigned moat_inventory_vm_of(const struct moat_inventory *, unsigned vnic);

/* "10.0.0.5", "10.0.0.0/24", "2001:db8::1", ... in the form that the inventory
 * takes.  -EINVAL: not that, or bits are set beyond the prefix. */
int moat_addr_parse(const char *text, struct moat_addr *);
/* The reverse; the length is left out if it is full. */
#define MOAT_ADDR_TEXT 52
void moat_addr_format(const struct moat_addr *, char buf[MOAT_ADDR_TEXT]);

/* --- Policy ---------------------------------------------------------------- */

struct moat_policy;

/* NULL if there is any error; the diagnosis has all of them.  `file` is for the
 * messages.  The caller destroys the policy. */
struct moat_policy *moat_policy_parse(const char *text, size_t len, const char *file,
                                      struct moat_diags *);
void moat_policy_destroy(struct moat_policy *);

const char *moat_policy_name(const struct moat_policy *);
unsigned moat_policy_n_rules(const struct moat_policy *); /* with those of the base tier */

/* Adds warnings: VMs that are not there, groups without a member, ... */
void moat_policy_check(const struct moat_policy *, const struct moat_inventory *,
                       struct moat_diags *);

/* The canonical text: it parses to the same policy and prints as itself.
 * Comments are kept.  The caller frees it; NULL: no memory. */
char *moat_policy_print(const struct moat_policy *);

/* The built-in base tier, in the language. */
const char *moat_policy_base_text(void);

/* One rule, as one line of text, for people.  Returns the length that the text
 * has (as snprintf), or -ENOENT.  id 0 is the default.  *line is where it stands
 * (in the base text, for a built-in rule; 0: nowhere), and may be NULL.  A NULL
 * policy has the rules of the base tier only. */
int moat_policy_rule_text(const struct moat_policy *, uint32_t id, char *buf, size_t size,
                          unsigned *line);

/* The settings of a VM: the host's defaults are not in here.  Quarantine is set
 * if the inventory says so, or if no rule that allows, drops or rejects names the
 * VM (base tier aside); a NULL policy names none. */
int moat_policy_settings(const struct moat_policy *, const struct moat_inventory *, unsigned vm,
                         struct moat_settings *);

/* The ruleset of one vNIC, in memory that the caller frees.  A VM in quarantine
 * gets the base tier and a default of drop, and the blob is marked as such: its
 * digest is never that of a ruleset of a VM that is not in quarantine.  -EINVAL: no such vNIC;
 * -E2BIG: over MOAT_RULESET_VNIC_MAX or too intricate, the diagnosis says which; -ENOMEM. */
int moat_policy_compile(const struct moat_policy *, const struct moat_inventory *, unsigned vnic,
                        uint64_t generation, uint8_t **blob, size_t *len, struct moat_diags *);

/* What becomes of a packet that belongs to no session. */
struct moat_decision {
    uint8_t verdict; /* MOAT_ALLOW, MOAT_DROP or MOAT_REJECT */
    bool logged;
    bool loose;        /* a TCP session may start mid-stream */
    uint32_t rule;     /* that decided; 0: the default */
    uint32_t log_rule; /* if logged: the first `log` rule that matched, else the one that decided */
};

/* The slow, obvious judge: works on the policy as written and shares no code
 * with the compiler, to be compared with what it makes.  -EINVAL: no such vNIC;
 * -ENOMEM; then the decision is to drop. */
int moat_policy_eval(const struct moat_policy *, const struct moat_inventory *, unsigned vnic,
                     const struct moat_flow *, struct moat_decision *);

#endif /* policy/policy.h */
