/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_BLOB_H
#define TESTS_BLOB_H 1

/* Builds compiled rulesets (moat/ruleset.h) for tests.  Aborts when out of memory or
 * misused: a test has nothing better to do.
 *
 *     struct blob *b = blob_create();
 *     struct moat_rule *r = blob_rule(b, MOAT_ALLOW, "web");
 *
 *     r->dirs = MOAT_RULE_TO_VM;
 *     r->proto = 6;
 *     r->dport_lo = r->dport_hi = 443;
 *     r->peer_set = blob_addresses(b, "10.0.0.0/24 2001:db8::/64");
 *     blob = blob_emit(b, &len);
 */

#include <stddef.h>
#include <stdint.h>

#include "moat/ruleset.h"

struct blob;

/* No rules, default drop, generation 1, every address in class 0. */
struct blob *blob_create(void);
void blob_destroy(struct blob *);

void blob_generation(struct blob *, uint64_t generation);
void blob_default(struct blob *, uint8_t action, uint8_t flags);

/* Appends a rule that matches every packet, with the next id; the caller narrows it.
 * Valid until the next call of blob_rule.  skip_to of a MOAT_NEXT_TIER is the next rule. */
struct moat_rule *blob_rule(struct blob *, uint8_t action, const char *name);
uint32_t blob_n_rules(const struct blob *);

/* A set of prefixes and addresses, separated by blanks; may overlap with others.  Makes
 * new classes as needed.  Returns the set's index. */
uint32_t blob_addresses(struct blob *, const char *text);

/* By hand, for odd partitions; not after blob_addresses.  Intervals come in rising order
 * and the first replaces the one that is there from the start. */
void blob_v4(struct blob *, uint32_t start, uint16_t class);
void blob_v6(struct blob *, const uint8_t start[16], uint16_t class);
uint32_t blob_set(struct blob *); /* an empty one */
void blob_set_add(struct blob *, uint32_t set, uint16_t class);
void blob_classes(struct blob *, uint32_t n); /* at least so many */

/* The blob, sealed, in memory of exactly its size, which the caller frees. */
uint8_t *blob_emit(const struct blob *, size_t *len);

/* Makes digest and checksum, or the checksum alone, right again after a change.  len is
 * at least that of the head. */
void blob_seal(void *blob, size_t len);
void blob_checksum(void *blob, size_t len);

#endif /* tests/lib/blob.h */
