/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_TEST_POLICY_H
#define MOAT_TEST_POLICY_H 1

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "policy/policy.h"

TCase *lex_tests(void);
TCase *parse_tests(void);
TCase *inventory_tests(void);
TCase *range_tests(void);
TCase *settings_tests(void);
TCase *eval_tests(void);
TCase *emit_tests(void);
TCase *hostile_tests(void);

/* The policy that `text` is; fails the test with the diagnosis if it is none. */
struct moat_policy *must_parse(const char *text);
/* Its diagnosis, whether it parses or not.  The caller frees it. */
char *diagnosis(const char *text);
/* "a, b/24" to addresses; returns how many. */
size_t addr_list(const char *text, struct moat_addr *out, size_t max);

/* The inventory of most tests, on two networks that use the same addresses:
 *   vNIC 0: web1  10.0.0.10, 2001:db8::10      role=web env=prod   "blue"
 *   vNIC 1: web2  10.0.0.11                    role=web env=test   "blue"
 *   vNIC 2: db    10.0.0.20, 10.0.0.100 (also web1's second address in no case)
 *   vNIC 3: lone  10.0.0.30                    no labels           "blue"
 *   vNIC 4: red   10.0.0.10                    role=red            "red"
 * Network blue has 10.0.0.0/24 and 2001:db8::/64, gateway 10.0.0.1, router
 * fe80::1, DHCP 10.0.0.2, metadata 169.254.169.254.  Network red has nothing. */
struct moat_inventory *shop(void);
struct moat_inventory *shop_quarantining(int vm); /* by an operator; -1: none */
enum { WEB1, WEB2, DB, LONE, RED };

/* A flow in words: "to 10.0.0.10 from 10.0.0.11 tcp 1024 80" (dir, local, remote,
 * protocol, source port, destination port). */
struct moat_flow flow(const char *dir, const char *local, const char *remote, unsigned proto,
                      unsigned sport, unsigned dport);

#endif /* tests/policy/test_policy.h */
