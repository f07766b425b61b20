/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_POLICY_ADDRESS_H
#define MOAT_POLICY_ADDRESS_H 1

/* Addresses, prefixes and spans of addresses: text to bytes and back.  The
 * functions on struct moat_addr are in policy.h. */

#include "policy/ast.h"

#define MOAT_RANGE_TEXT 100

enum moat_range_error {
    RANGE_OK,
    RANGE_BAD,       /* not an address */
    RANGE_BAD_PLEN,  /* prefix length out of range */
    RANGE_HOST_BITS, /* bits beyond the prefix; the range holds the prefix meant */
    RANGE_MIXED,     /* from IPv4 to IPv6 */
    RANGE_REVERSED,  /* from high to low */
};

/* "10.0.0.0/8", "2001:db8::1", "10.0.0.1-10.0.0.9" */
enum moat_range_error moat_range_parse(const char *text, struct ast_range *);
void moat_range_format(const struct ast_range *, char buf[MOAT_RANGE_TEXT]);

/* First and last address of a prefix.  False if bits are set beyond it (lo is
 * then the prefix without them). */
bool moat_prefix_bounds(const uint8_t addr[16], unsigned bits, unsigned plen, uint8_t lo[16],
                        uint8_t hi[16]);

#endif /* policy/address.h */
