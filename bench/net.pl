# The server of bench/network.py. Argument: PORT. A connection's first line says what it wants: "sink BYTES" reads that
# many and says "done", "source BYTES" sends them, "echo" sends back what comes, 64 bytes at a time, "hello" says "done".
use strict;
use Socket;

socket my $server, PF_INET, SOCK_STREAM, 0 or die $!;
setsockopt $server, SOL_SOCKET, SO_REUSEADDR, 1;
bind $server, sockaddr_in($ARGV[0], INADDR_ANY) or die "bind: $!";
listen $server, 5;
my $block = 'x' x 65536;
while (accept my $client, $server) {
    setsockopt $client, 6, 1, 1;    # TCP_NODELAY
    my $line = '';
    while ($line !~ /\n$/) { sysread $client, $line, 1, length $line or last }
    my ($what, $left) = split ' ', $line;
    if ($what eq 'sink') {
        while ($left > 0) { my $came = sysread $client, my $data, 1 << 18 or last; $left -= $came }
    } elsif ($what eq 'source') {
        while ($left > 0) { my $sent = syswrite $client, $block or last; $left -= $sent }
    } elsif ($what eq 'echo') {
        while (sysread $client, my $data, 64) { syswrite $client, $data }
    }
    syswrite $client, 'done' if $what eq 'sink' || $what eq 'hello';
    close $client;
}
