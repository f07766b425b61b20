/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_POLICY_MEMBER_H
#define MOAT_POLICY_MEMBER_H 1

/* Which VMs a group names: those that it lists, and those that own an address that
 * it lists.  Used for settings, quarantine and warnings. */

#include "policy/ast.h"
#include "policy/inventory.h"

/* One VM at a time; remembers what it found about groups. */
struct moat_member {
    const struct moat_policy *policy;
    const struct moat_inventory *inv;
    unsigned vm;
    uint32_t *vnics, *first; /* vNICs by VM: those of vm are vnics[first[vm]..first[vm + 1]) */
    int8_t *memo;            /* by group: -1: not known yet */
};

/* 0 or -ENOMEM. */
int moat_member_init(struct moat_member *, const struct moat_policy *,
                     const struct moat_inventory *);
void moat_member_destroy(struct moat_member *);

/* The VM that the next questions are about. */
void moat_member_vm(struct moat_member *, unsigned vm);
bool moat_member_group(struct moat_member *, uint32_t group);
bool moat_member_expr(struct moat_member *, const struct ast_expr *);

/* Whether an operator says so, or no rule (base tier aside) that allows, drops or rejects names
 * the VM. */
bool moat_member_in_quarantine(struct moat_member *);

/* A term about VMs (moat_ast_term_is_vm) and one of them. */
bool moat_member_term(const struct ast_term *, const struct inv_vm *);

#endif /* policy/member.h */
