/* SPDX-License-Identifier: Apache-2.0 */

/* The ring alone, at its smallest sizes: what test_event.c and test_trace.c do not reach. */

#include "datapath/ring.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

START_TEST(sizes)
{
    struct moat_ring r;

    ck_assert_int_lt(moat_ring_init(&r, 0, 8), 0);
    ck_assert_int_lt(moat_ring_init(&r, 1, 8), 0);
    ck_assert_int_lt(moat_ring_init(&r, 12, 8), 0);
    for (uint32_t size = 1; size < 40; size++) {
        ck_assert_int_eq(moat_ring_init(&r, 2, size), 0);
        /* Each cell has room for all of it and is aligned. */
        for (int i = 0; i < 2; i++) {
            uint8_t *c = moat_ring_claim(&r);

            ck_assert_ptr_nonnull(c);
            ck_assert_uint_eq((uintptr_t)c % 8, 0);
            memset(c, 0x11 * (i + 1), size);
            moat_ring_publish(c);
        }
        for (int i = 0; i < 2; i++) {
            const uint8_t *c = moat_ring_peek(&r);

            ck_assert_ptr_nonnull(c);
            for (uint32_t k = 0; k < size; k++)
                ck_assert_uint_eq(c[k], 0x11 * (i + 1));
            ck_assert_uint_eq(moat_ring_release(&r), (uint64_t)i + 1);
        }
        ck_assert_ptr_null(moat_ring_peek(&r));
        moat_ring_destroy(&r);
    }
}
END_TEST

/* What was claimed and not published yet hides what came later, and keeps its place. */
START_TEST(claimed_is_not_published)
{
    struct moat_ring r;
    uint32_t *a, *b;

    ck_assert_int_eq(moat_ring_init(&r, 4, sizeof *a), 0);
    a = moat_ring_claim(&r);
    b = moat_ring_claim(&r);
    *b = 2;
    moat_ring_publish(b);
    ck_assert_ptr_null(moat_ring_peek(&r));
    *a = 1;
    moat_ring_publish(a);
    ck_assert_uint_eq(*(const uint32_t *)moat_ring_peek(&r), 1);
    ck_assert_uint_eq(*(const uint32_t *)moat_ring_peek(&r), 1); /* looking takes nothing */
    ck_assert_uint_eq(moat_ring_release(&r), 1);
    ck_assert_uint_eq(*(const uint32_t *)moat_ring_peek(&r), 2);
    ck_assert_uint_eq(moat_ring_release(&r), 2);
    moat_ring_destroy(&r);
}
END_TEST

START_TEST(loss_is_a_gap)
{
    struct moat_ring r;

    ck_assert_int_eq(moat_ring_init(&r, 2, 4), 0);
    for (int i = 0; i < 5; i++) {
        void *c = moat_ring_claim(&r);

        ck_assert((c != NULL) == (i < 2));
        if (c)
            moat_ring_publish(c);
    }
    ck_assert_uint_eq(r.lost, 3);
    ck_assert_ptr_nonnull(moat_ring_peek(&r));
    ck_assert_uint_eq(moat_ring_release(&r), 4); /* the first of two; three were lost */
    ck_assert_uint_eq(moat_ring_release(&r), 5);
    moat_ring_destroy(&r);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("ring");
    TCase *t = tcase_create("ring");
    SRunner *r;
    int failed;

    tcase_add_test(t, sizes);
    tcase_add_test(t, claimed_is_not_published);
    tcase_add_test(t, loss_is_a_gap);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
