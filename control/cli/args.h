/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_CLI_ARGS_H
#define MOAT_CLI_ARGS_H 1

/* What may stand in an argument, and its canonical form.
 *
 * Each arg_*() returns NULL if the text is good, else what is wrong with it (the
 * caller frees it), worded to follow "ADDRESS \"x\": ".  *canonical, if it is
 * returned, is the caller's too. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct arg_prefix {
    uint8_t family; /* 4 or 6 */
    uint8_t plen;
    uint8_t addr[16]; /* IPv4 in the first 4 bytes */
};

/* Names of VMs, networks, hosts and policies: letters, digits, "._-", fewer than 64. */
char *arg_name(const char *s);
/* Ids of vNICs: a name that may have colons. */
char *arg_vnic_id(const char *s);
/* Keys and values of labels: a name that may have slashes. */
char *arg_label(const char *s);
/* A value of a setting: printable ASCII, fewer than 256. */
char *arg_value(const char *s);
char *arg_uuid(const char *s, char **canonical);
/* Of one station: no group bit, not all zero. */
char *arg_mac(const char *s, char **canonical);
/* Of one station: not unspecified, multicast or broadcast. */
char *arg_address(const char *s, char **canonical);
/* ADDRESS/LENGTH, bits behind the length zero; or an address alone. */
char *arg_prefix(const char *s, char **canonical);

/* Reads an address or prefix from a database or the command line. */
bool prefix_parse(const char *s, struct arg_prefix *);
bool prefix_contains(const struct arg_prefix *, unsigned family, const uint8_t addr[16]);

/* Splits "key=value": *value points behind the "=", *key_len counts what is before
 * it.  False: there is no "=" or no key. */
bool arg_split(const char *s, size_t *key_len, const char **value);

#endif /* control/cli/args.h */
