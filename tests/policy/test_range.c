/* SPDX-License-Identifier: Apache-2.0 */

/* Sets against bitmaps of a small part of the address space, at either end. */

#include "test_policy.h"

#include "tests/lib/gen_policy.h"
#include "policy/range.h"

enum { SPACE = 64 };

static moat_u128 place(int family, unsigned i)
{
    return i < SPACE / 2 ? i : moat_range_max(family) - (SPACE - 1 - i);
}

static uint64_t fill(struct moat_rangeset *s, int f, uint64_t *rng)
{
    uint64_t bits = 0;
    for (unsigned n = moat_gen_below(rng, 6); n > 0; n--) {
        unsigned a = moat_gen_below(rng, SPACE), b = moat_gen_below(rng, SPACE);
        if (a > b || (a < SPACE / 2) != (b < SPACE / 2))
            b = a;
        moat_rangeset_add(s, f, place(f, a), place(f, b));
        for (unsigned i = a; i <= b; i++)
            bits |= UINT64_C(1) << i;
    }
    moat_rangeset_normalise(s);
    return bits;
}

static void compare(const struct moat_rangeset *s, int f, uint64_t bits)
{
    bool ok = true;
    for (unsigned i = 0; i < SPACE; i++) {
        bool in = false;
        for (uint32_t k = 0; k < s->f[f].n; k++)
            in = in || (s->f[f].v[k].lo <= place(f, i) && place(f, i) <= s->f[f].v[k].hi);
        ok = ok && in == (bits >> i & 1);
    }
    for (uint32_t k = 0; k < s->f[f].n; k++) {
        ok = ok && s->f[f].v[k].lo <= s->f[f].v[k].hi;
        ok = ok && (k == 0 || s->f[f].v[k].lo - 1 > s->f[f].v[k - 1].hi);
    }
    ck_assert(ok);
}

START_TEST(algebra)
{
    uint64_t rng = 1;
    for (int round = 0; round < 20000; round++) {
        int f = round & 1;
        struct moat_rangeset a = {0}, b = {0};
        uint64_t abits = fill(&a, f, &rng), bbits = fill(&b, f, &rng);
        compare(&a, f, abits);
        moat_rangeset_subtract(&a, &b);
        compare(&a, f, abits & ~bbits);
        moat_rangeset_append(&a, &b);
        moat_rangeset_normalise(&a);
        compare(&a, f, abits | bbits);
        moat_rangeset_destroy(&a);
        moat_rangeset_destroy(&b);
    }
}
END_TEST

START_TEST(everything)
{
    struct moat_rangeset a = {0}, b = {0};
    moat_rangeset_add_all(&a);
    moat_rangeset_add_all(&a);
    moat_rangeset_normalise(&a);
    moat_rangeset_add_all(&b);
    ck_assert(moat_rangeset_is_full(&a, RANGE_V4) && moat_rangeset_is_full(&a, RANGE_V6));
    ck_assert(moat_rangeset_equal(&a, &b));
    moat_rangeset_subtract(&a, &b);
    ck_assert_uint_eq(a.f[RANGE_V4].n + a.f[RANGE_V6].n, 0);
    ck_assert(!moat_rangeset_equal(&a, &b));
    moat_rangeset_destroy(&a);
    moat_rangeset_destroy(&b);
}
END_TEST

TCase *range_tests(void)
{
    TCase *tc = tcase_create("range");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, algebra);
    tcase_add_test(tc, everything);
    return tc;
}
