/* SPDX-License-Identifier: Apache-2.0 */
#include "policy/range.h"

#include <stdlib.h>
#include <string.h>

#include "moat/flow.h"

moat_u128 moat_range_max(int family)
{
    return family == RANGE_V4 ? (moat_u128)UINT32_MAX : ~(moat_u128)0;
}

moat_u128 moat_range_addr(int family, const uint8_t addr[16])
{
    moat_u128 v = 0;
    for (int i = 0; i < (family == RANGE_V4 ? 4 : 16); i++)
        v = v << 8 | addr[i];
    return v;
}

int moat_range_family(unsigned family)
{
    return family == MOAT_FAM_IP6 ? RANGE_V6 : RANGE_V4;
}

void moat_rangeset_add(struct moat_rangeset *s, int f, moat_u128 lo, moat_u128 hi)
{
    if (s->f[f].n == s->f[f].cap) {
        uint32_t cap = s->f[f].cap ? s->f[f].cap * 2 : 4;
        struct moat_range *v = realloc(s->f[f].v, cap * sizeof *v);
        if (!v) {
            s->failed = true;
            return;
        }
        s->f[f].v = v;
        s->f[f].cap = cap;
    }
    s->f[f].v[s->f[f].n++] = (struct moat_range){lo, hi};
}

void moat_rangeset_add_all(struct moat_rangeset *s)
{
    for (int f = 0; f < N_RANGE_FAMILIES; f++)
        moat_rangeset_add(s, f, 0, moat_range_max(f));
}

void moat_rangeset_append(struct moat_rangeset *s, const struct moat_rangeset *more)
{
    for (int f = 0; f < N_RANGE_FAMILIES; f++)
        for (uint32_t i = 0; i < more->f[f].n; i++)
            moat_rangeset_add(s, f, more->f[f].v[i].lo, more->f[f].v[i].hi);
}

static int by_lo(const void *a_, const void *b_)
{
    const struct moat_range *a = a_, *b = b_;
    return a->lo < b->lo ? -1 : a->lo > b->lo;
}

static bool is_sorted(const struct moat_range *v, uint32_t n)
{
    for (uint32_t i = 1; i < n; i++)
        if (v[i].lo < v[i - 1].lo)
            return false;
    return true;
}

void moat_rangeset_normalise(struct moat_rangeset *s)
{
    for (int f = 0; f < N_RANGE_FAMILIES; f++) {
        struct moat_range *v = s->f[f].v;
        uint32_t n = s->f[f].n, kept = 0;
        if (n < 2)
            continue;
        if (!is_sorted(v, n)) /* it mostly is: a copy of one group */
            qsort(v, n, sizeof *v, by_lo);
        for (uint32_t i = 1; i < n; i++) {
            /* The second test keeps hi + 1 from wrapping. */
            if (v[i].lo <= v[kept].hi || v[i].lo - 1 == v[kept].hi) {
                if (v[i].hi > v[kept].hi)
                    v[kept].hi = v[i].hi;
            } else {
                v[++kept] = v[i];
            }
        }
        s->f[f].n = kept + 1;
    }
}

void moat_rangeset_subtract(struct moat_rangeset *a, const struct moat_rangeset *b)
{
    struct moat_rangeset out = {.failed = a->failed || b->failed};
    for (int f = 0; f < N_RANGE_FAMILIES; f++) {
        uint32_t k = 0;
        for (uint32_t i = 0; i < a->f[f].n; i++) {
            moat_u128 lo = a->f[f].v[i].lo, hi = a->f[f].v[i].hi;
            bool left = true;
            while (k < b->f[f].n && b->f[f].v[k].hi < lo)
                k++;
            for (uint32_t j = k; left && j < b->f[f].n && b->f[f].v[j].lo <= hi; j++) {
                const struct moat_range *cut = &b->f[f].v[j];
                if (cut->lo > lo)
                    moat_rangeset_add(&out, f, lo, cut->lo - 1);
                left = cut->hi < hi;
                lo = cut->hi + 1;
            }
            if (left)
                moat_rangeset_add(&out, f, lo, hi);
        }
    }
    moat_rangeset_destroy(a);
    *a = out;
}

bool moat_rangeset_equal(const struct moat_rangeset *a, const struct moat_rangeset *b)
{
    for (int f = 0; f < N_RANGE_FAMILIES; f++)
        if (a->f[f].n != b->f[f].n ||
            (a->f[f].n && memcmp(a->f[f].v, b->f[f].v, a->f[f].n * sizeof *a->f[f].v)))
            return false;
    return true;
}

bool moat_rangeset_is_full(const struct moat_rangeset *s, int f)
{
    return s->f[f].n == 1 && s->f[f].v[0].lo == 0 && s->f[f].v[0].hi == moat_range_max(f);
}

void moat_rangeset_destroy(struct moat_rangeset *s)
{
    for (int f = 0; f < N_RANGE_FAMILIES; f++)
        free(s->f[f].v);
    *s = (struct moat_rangeset){0};
}
