#!/usr/bin/perl
# Line echo: each client gets a process of its own, and each of its lines back.
#
# The tunnel hands over a listening socket as standard input; what is left to do is to accept and to print.

use strict;
use warnings;
use IO::Handle;
use POSIX qw(WNOHANG);
use Socket qw(SOL_SOCKET SO_ACCEPTCONN);

my $listening = getsockopt STDIN, SOL_SOCKET, SO_ACCEPTCONN;
unless (defined $listening && unpack 'i', $listening) {
    warn "$0: standard input is not a listening socket; "
        . "run me as: python -m wstunnel --socket /tmp/echo.sock --bin-path $0\n";
    exit 1;
}

my %child;
$SIG{TERM} = sub { kill TERM => keys %child; exit 0 };

while (accept my $client, STDIN) {
    while ((my $ended = waitpid -1, WNOHANG) > 0) { delete $child{$ended} }
    my $pid = fork;
    if (!defined $pid) {
        warn "$0: fork: $!\n";
    }
    elsif ($pid) {
        $child{$pid} = 1;
    }
    else {
        $SIG{TERM} = 'DEFAULT';
        $client->autoflush(1);
        while (my $line = <$client>) {
            print {$client} $line;    # to a client that went away: SIGPIPE, which ends this process and no other
        }
        exit 0;
    }
}
die "$0: accept: $!\n";
