/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_BENCH_GUESTS_H
#define TESTS_BENCH_GUESTS_H 1

/* The VMs of a benchmark: what the agent would read from the database, made from the
 * command line or a table.  All are in one network. */

#include <stddef.h>
#include <stdint.h>

#include "moat/ctl.h"

#define GUESTS_MAX 8

struct guests {
    unsigned n;
    struct moat_slot_conf conf[GUESTS_MAX]; /* vnic "<vm>-nic", state ACTIVE */
};

/* "NAME,VHOST-SOCKET,MAC,ADDRESS[,ADDRESS...]"; an address may be a prefix.  -EINVAL. */
int guests_add(struct guests *, const char *text);

/* The ruleset of guest i under a policy text; free() it.  NULL: the reasons went to stderr. */
uint8_t *guests_ruleset(const struct guests *, unsigned i, const char *policy, size_t *len);

#endif /* tests/bench/guests.h */
