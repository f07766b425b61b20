/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DIFFERENTIAL_APPROVED_H
#define DIFFERENTIAL_APPROVED_H 1

/* The differences that are meant: each has a name, says when it applies, and why it is right. */

#include <stdbool.h>

#include "tracker.h"

enum difference {
    LOOSER = 0,   /* Moat passes what both others refuse */
    STRICTER = 1, /* Moat refuses what both others accept */
};

struct approved {
    const char *name;
    enum difference difference;
    bool (*applies)(const struct talk *, const struct seen *, unsigned i);
    const char *why;
};

extern const struct approved approved[];
extern const unsigned n_approved;

/* Its index, or -1: nobody approved it. */
int find_approved(enum difference, const struct talk *, const struct seen *, unsigned i);

#endif /* tests/differential/approved.h */
