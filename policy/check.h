/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_POLICY_CHECK_H
#define MOAT_POLICY_CHECK_H 1

#include "policy/ast.h"

/* Names, references, cycles, and what fits where: all that can be said without an
 * inventory.  Resolves the references; returns the number of errors. */
unsigned moat_check_names(struct moat_policy *, struct moat_diags *);

#endif /* policy/check.h */
