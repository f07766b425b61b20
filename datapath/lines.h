/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_LINES_H
#define MOAT_DP_LINES_H 1

/* Memory for what must not share a cache line with anything else. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MOAT_LINE 64

/* n zeroed things of this size, one after the other, and nothing else on their lines.  NULL: no
 * memory. To be freed by free(). */
static inline void *moat_lines_alloc(size_t n, size_t size)
{
    size_t bytes;
    void *p;

    if (__builtin_mul_overflow(n, size, &bytes) || bytes > SIZE_MAX - MOAT_LINE)
        return NULL;
    bytes = (bytes + MOAT_LINE - 1) / MOAT_LINE * MOAT_LINE;
    p = aligned_alloc(MOAT_LINE, bytes);
    return p ? memset(p, 0, bytes) : NULL;
}

#endif /* datapath/lines.h */
