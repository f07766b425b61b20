/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_POLICY_DIAG_H
#define MOAT_POLICY_DIAG_H 1

/* Adding to a diagnosis; reading it is in policy.h. */

#include <stdint.h>

#include "policy/policy.h"

/* A place in the text, from 1; line 0 is the file as a whole. */
struct moat_pos {
    uint32_t line, column;
};

/* `hint` may be NULL.  Names in a message go into `backquotes`, cut to 80 bytes
 * by the caller's format where they come from outside.  After
 * MOAT_POLICY_MAX_DIAGS the rest is only counted. */
void moat_diags_add(struct moat_diags *, enum moat_severity, const char *file, struct moat_pos,
                    const char *hint, const char *format, ...)
    __attribute__((format(printf, 6, 7)));

/* Orders the list by position. */
void moat_diags_sort(struct moat_diags *);

#endif /* policy/diag.h */
