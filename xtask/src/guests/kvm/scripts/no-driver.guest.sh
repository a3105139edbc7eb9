synthetic_nic
read line
pings synthetic
